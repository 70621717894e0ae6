"""What deblurs in an evaluation: a checkpoint in PyTorch, a bundle, an ONNX file, or results made before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from msan.data.readers import DatasetError
from msan.evaluation.onnx_file import open_onnx_file
from msan.evaluation.results import match_results, read_result
from msan.evaluation.sets import EvaluationSet, MeasuredPair
from msan_runtime.attention import DEFAULT_ATTENTION, Attention
from msan_runtime.bundle import Bundle, find_bundle, shipped_bundles
from msan_runtime.contract import PictureArray, pad_to, round_up
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import BackendError, MissingExtraError, MsanError
from msan_runtime.image import find_pictures
from msan_runtime.manifest import MANIFEST_NAME
from msan_runtime.select import BACKENDS

if TYPE_CHECKING:
    import torch

    from msan.network import MsanNetwork

__all__ = ["TORCH_BACKENDS", "Method", "MethodKind", "deblur_with_network", "kind_of", "open_method"]

MethodKind = Literal["checkpoint", "bundle", "onnx", "results"]

TORCH_BACKENDS = ("torch-cuda", "torch-cpu")
"""Where a checkpoint runs, in order of preference."""

GRAPHS_PREFERRED = {
    "ort-cuda": ("fp16", "fp32"),
    **dict.fromkeys(("ort-cpu", "openvino", "openvino-bf16"), ("fp32", "fp16")),
}
FLAVOURS = {"rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}


@dataclass(frozen=True, kw_only=True)
class Method:
    """Something that gives a deblurred picture for each pair of a set.

    Attributes:
        label: for tables.
        source: as the user named it.
        kind: what it is.
        deblur: uint8 H×W×3 picture of a pair, of the same shape; done when it returns, on a GPU too.
        sha256: of the checkpoint, the ONNX file or the bundle's manifest (which holds all its hashes);
            ``None`` for results.
        size_bytes: of the weights' file that runs; ``None`` for results.
        backend: that runs it, and ``device``: in words; ``None`` for results.
        tile_area_px: pictures over this are cut into tiles; ``None`` for whole pictures.
        attention: of the network, ``global`` or ``window:SIZE``; ``None`` for results.
        notes: what a user should know, a line each.
    """

    label: str
    source: str
    kind: MethodKind
    deblur: Callable[[MeasuredPair], PictureArray]
    sha256: str | None = None
    size_bytes: int | None = None
    backend: str | None = None
    device: str | None = None
    tile_area_px: int | None = None
    attention: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def timed(self) -> bool:
        """Whether ``deblur`` runs a network, so that its time means something."""
        return self.kind != "results"


def kind_of(model: str, backend: str = "auto") -> MethodKind:
    """What ``model`` names: a folder is a bundle or results, a file an ONNX file or a checkpoint.

    The name of a shipped network is its checkpoint, or its bundle if ``backend`` is one of the runtime's.

    Raises:
        MsanError: if there is nothing of that name, or nothing of use in the folder.
    """
    path = Path(model)
    if path.is_dir():
        if (path / MANIFEST_NAME).is_file():
            return "bundle"
        if not find_pictures(path):
            raise DatasetError(f"{path} holds neither a bundle ({MANIFEST_NAME}) nor pictures of another network")
        return "results"
    if path.suffix.lower() == ".onnx":
        return "onnx"
    if not path.exists() and backend in BACKENDS and model in shipped_bundles():
        return "bundle"
    if not path.exists() and not resources.files("msan").joinpath("weights", f"{model}.safetensors").is_file():
        raise MsanError(f"no checkpoint, ONNX file, bundle or folder of pictures at {model}")
    return "checkpoint"


@contextmanager
def open_method(
    model: str, sets: Sequence[EvaluationSet], *, backend: str = "auto", attention: str | None = None
) -> Generator[Method]:
    """Open what ``model`` names (:func:`kind_of`) and close it at the end.

    Args:
        model: checkpoint (file or shipped name), ONNX file, bundle's folder, or folder of results.
        sets: what it will be measured on; results are matched to these.
        backend: ``auto`` or one of ``TORCH_BACKENDS`` (checkpoints) or of the runtime's ``BACKENDS``.
        attention: of a checkpoint: ``global``, ``window`` (if left out) or ``window:SIZE``. Anything else carries
            its own.

    Raises:
        MsanError: if it cannot be opened, the backend is not one that runs it, attention is chosen for what is no
            checkpoint, or results are missing.
    """
    kind = kind_of(model, backend)
    if attention is not None and kind != "checkpoint":
        raise MsanError(f"{model} is no checkpoint: its attention is fixed. Leave out --attention {attention}")
    if kind == "results":
        yield _results(model, sets, backend)
    elif kind == "checkpoint":
        with _checkpoint(model, backend, attention or str(DEFAULT_ATTENTION)) as method:
            yield method
    elif kind == "onnx":
        path = Path(model)
        with open_onnx_file(path, backend) as deblurrer:
            yield _runtime_method(model, kind, deblurrer, path, path)
    else:
        _refuse_torch(model, backend)
        with Deblurrer.load(model, backend) as deblurrer:
            manifest = find_bundle(model) / MANIFEST_NAME
            yield _runtime_method(model, kind, deblurrer, manifest, _file_run(deblurrer.bundle, deblurrer.backend.name))


def deblur_with_network(network: MsanNetwork, picture: PictureArray) -> PictureArray:
    """Deblur a uint8 H×W×3 picture with PyTorch in FP32, whole, rounded half to even: the reference.

    Runs on the device of the network's weights and has finished when it returns.
    """
    import torch

    height, width = picture.shape[:2]
    padded = pad_to(picture, round_up(height), round_up(width))
    pixels = torch.from_numpy(np.ascontiguousarray(padded)).to(next(network.parameters()).device)
    with torch.inference_mode():
        sharp = network(pixels.permute(2, 0, 1)[None].float() / 255)[0, :, :height, :width]
        levels = (sharp.clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).cpu().contiguous().numpy()


def _results(model: str, sets: Sequence[EvaluationSet], backend: str) -> Method:
    if backend != "auto":
        raise BackendError(f"{model} is a folder of pictures, which no backend runs. Leave out --backend {backend}")
    folder = Path(model)
    matched: dict[Path, Path] = {}
    for chosen in sets:
        found = match_results(folder, chosen)
        shared = sorted(set(matched.values()) & set(found.values()))
        if shared:
            raise DatasetError(
                f"{shared[0]} would be the result for several sets. Put each set's results into a folder of its "
                f"name, such as {folder / chosen.name}"
            )
        matched |= found
    return Method(
        label=folder.resolve().name,
        source=model,
        kind="results",
        deblur=lambda pair: read_result(matched[pair.file], pair),
    )


@contextmanager
def _checkpoint(model: str, backend: str, attention: str) -> Generator[Method]:
    if backend not in ("auto", *TORCH_BACKENDS):
        raise BackendError(f"{model} is a checkpoint, which runs on torch-cpu or torch-cuda, not {backend}")
    try:
        import torch

        from msan.checkpoint import find_checkpoint, load_checkpoint, network_from_checkpoint
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "train") from error
    device = _torch_device(backend)
    checkpoint = load_checkpoint(find_checkpoint(model))
    chosen = Attention.parse(attention)
    network = network_from_checkpoint(checkpoint, chosen).to(device)
    # FP32 is to mean FP32: cuDNN's default rounds the inputs of convolutions to TF32's 10 bits.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield Method(
            label=Path(model).name,
            source=model,
            kind="checkpoint",
            deblur=lambda pair: deblur_with_network(network, pair.blurred),
            sha256=checkpoint.sha256,
            size_bytes=checkpoint.path.stat().st_size,
            backend=f"torch-{device.type}",
            device=_torch_words(device),
            attention=str(chosen),
        )


def _torch_device(backend: str) -> torch.device:
    import torch

    if backend == "torch-cuda" and not torch.cuda.is_available():
        raise BackendError("backend torch-cuda: PyTorch sees no CUDA GPU here. Use --backend torch-cpu")
    return torch.device("cpu" if backend == "torch-cpu" or not torch.cuda.is_available() else "cuda")


def _torch_words(device: torch.device) -> str:
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, PyTorch {torch.__version__} FP32"


def _refuse_torch(model: str, backend: str) -> None:
    if backend in TORCH_BACKENDS:
        raise BackendError(f"{model} is a bundle, which runs on {', '.join(BACKENDS)}, not {backend}")


def _runtime_method(model: str, kind: MethodKind, deblurrer: Deblurrer, hashed: Path, run: Path) -> Method:
    backend = deblurrer.backend
    note = f"running on {backend.name}, since {'; '.join(deblurrer.passed_over)}"
    return Method(
        label=Path(model).name,
        source=model,
        kind=kind,
        deblur=lambda pair: deblurrer.deblur(pair.blurred),
        sha256=hashlib.sha256(hashed.read_bytes()).hexdigest(),
        size_bytes=run.stat().st_size,
        backend=backend.name,
        device=backend.device,
        tile_area_px=backend.limits.area_px,
        attention=deblurrer.bundle.manifest.attention,
        # What a bundle passes over the runtime has logged itself.
        notes=(note,) if kind == "onnx" and deblurrer.passed_over else (),
    )


def _file_run(bundle: Bundle, backend: str) -> Path:
    """The graph or engine that ``backend`` takes of a bundle."""
    graph = bundle.graph(prefer=GRAPHS_PREFERRED[backend]) if backend in GRAPHS_PREFERRED else None
    entry = graph or bundle.engine(FLAVOURS.get(backend, ""))
    if entry is None:
        raise BackendError(f"the bundle has no file for {backend}")
    return bundle.folder / entry.path
