"""Checkpoints: safe loading, the spec read off the tensor shapes, atomic saving.

Two formats are read: safetensors, and PyTorch files of plain tensors (``weights_only=True``:
no code in the file is ever run). The key layout is the published one, ``edcoder1.layer1.weight``
and so on; a ``module.`` prefix (DataParallel) and a wrapping ``state_dict``, ``model``,
``params_ema`` or ``params`` entry are taken off.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from msan.network import MsanNetwork
from msan.spec import ModelSpec, SpecError
from msan_runtime.atomic import replacing
from msan_runtime.attention import GLOBAL, Attention
from msan_runtime.errors import MsanError

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "find_checkpoint",
    "load_checkpoint",
    "network_from_checkpoint",
    "read_tensors",
    "save_checkpoint",
    "spec_from_state",
]

EXPECTED = "an MSAN state dict (keys like 'edcoder1.layer1.weight'), as safetensors or a PyTorch file"
WEIGHTS = Path(__file__).parent / "weights"
PICKLES = (b"PK", b"\x80")
"""How PyTorch's files begin: archives, and pickles of before 1.6."""
WRAPPERS = ("state_dict", "model", "params_ema", "params")


class CheckpointError(MsanError):
    """A file that is not a checkpoint of an MSAN network."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights read from a file.

    Attributes:
        path: the file.
        sha256: of the file, hexadecimal.
        spec: read off the tensor shapes.
        state: float32 tensors under the published keys, complete for ``spec``.
        metadata: what the file says of itself (safetensors only).
    """

    path: Path
    sha256: str
    spec: ModelSpec
    state: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def find_checkpoint(name: str) -> Path:
    """The file of a checkpoint given by its path or the name of a shipped one (``msan-s``, with suffix or without)."""
    path = Path(name)
    shipped = WEIGHTS / f"{name.removesuffix('.safetensors')}.safetensors"
    return shipped if not path.exists() and shipped.is_file() else path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint.

    Raises:
        CheckpointError: if the file is missing, is in neither format, or holds other tensors than
            an MSAN network of some spec has; the message names what was expected and found.
    """
    if not path.is_file():
        what = f"{path} is a folder, not a checkpoint file" if path.is_dir() else f"no checkpoint file at {path}"
        raise CheckpointError(f"{what}: expected {EXPECTED}")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    tensors, metadata = _read(path, EXPECTED)
    state = _published_keys(tensors, path)
    spec = spec_from_state(state, path)
    _check_complete(state, spec, path)
    return Checkpoint(path=path, sha256=sha256, spec=spec, state=state, metadata=metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor in a file of weights of any network, safetensors or PyTorch, as it is.

    Raises:
        CheckpointError: if the file is in neither format, or holds anything but tensors.
    """
    expected = "a state dict, as safetensors or a PyTorch file"
    content, _ = _read(path, expected)
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) != len(content):
        other = next(name for name in content if name not in tensors)
        raise CheckpointError(f"{path}: entry {other!r} is a {type(content[other]).__name__}: expected {expected}")
    return tensors


def network_from_checkpoint(checkpoint: Checkpoint, attention: Attention = GLOBAL) -> MsanNetwork:
    """The network with the checkpoint's weights, in evaluation mode."""
    network = MsanNetwork(checkpoint.spec, attention)
    network.load_state_dict(dict(checkpoint.state))
    return network.eval()


def save_checkpoint(network: MsanNetwork, path: Path, metadata: Mapping[str, str]) -> None:
    """Write ``network`` as safetensors, atomically."""
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in network.state_dict().items()}
    with replacing(path) as temporary:
        safetensors.torch.save_file(state, temporary, dict(metadata))


def spec_from_state(state: Mapping[str, Tensor], path: Path) -> ModelSpec:
    """The ModelSpec whose network has these tensors, read off their names and shapes.

    Raises:
        CheckpointError: if the first convolution is not there or not of MSAN's shape.
    """
    first = state.get("edcoder1.layer1.weight")
    if first is None or first.ndim != 4:
        raise CheckpointError(f"{path} holds no MSAN network: expected {EXPECTED}; found {_some(state)}")
    try:
        return ModelSpec(
            stages=_count(state, r"edcoder(\d+)\."),
            base_channels=first.shape[0],
            resblocks=_count(state, r"edcoder1\.layer2\.(\d+)\."),
            attention=any(name.startswith("edcoder1.sa.") for name in state),
        )
    except SpecError as error:
        raise CheckpointError(f"{path} holds no MSAN network: {error}") from error


def _read(path: Path, expected: str) -> tuple[Mapping[str, object], Mapping[str, str]]:
    """Entries and metadata of a file in either format."""
    with path.open("rb") as file:
        head = file.read(9)
    return _read_safetensors(path, expected) if head[8:] == b"{" else (_read_torch(path, expected), {})


def _read_safetensors(path: Path, expected: str) -> tuple[Mapping[str, object], Mapping[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names: list[str] = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not safetensors ({error}): expected {expected}") from error


def _read_torch(path: Path, expected: str) -> Mapping[str, object]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged pickle raises whatever it trips over: IndexError, struct.error, AssertionError and more.
        raise _unreadable(path, error, expected) from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}: expected {expected}")
    return {str(name): value for name, value in content.items()}


def _unreadable(path: Path, error: Exception, expected: str) -> CheckpointError:
    """Why PyTorch cannot read the file: by its first bytes, or by what PyTorch says."""
    with path.open("rb") as file:
        head = file.read(2)
    if not head:
        return CheckpointError(f"{path} is empty: expected {expected}")
    if not head.startswith(PICKLES):
        return CheckpointError(f"{path} is no PyTorch checkpoint: expected {expected}")
    held = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    if held is not None:
        return CheckpointError(
            f"{path} holds pickled Python objects ({held[1]}), as a file of a whole pickled module does: "
            f"save module.state_dict() instead; expected {expected}"
        )
    # The first sentence only: PyTorch's next ones advise to load it unsafely.
    reason = f"{type(error).__name__}: {error}".split("\n")[0].split(". ")[0][:160].removesuffix(": ")
    return CheckpointError(f"{path} cannot be read as weights ({reason}): expected {expected}")


def _published_keys(tensors: Mapping[str, object], path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: entry {name!r} is a {type(value).__name__}: expected {EXPECTED}")
        if value.layout != torch.strided or not value.is_floating_point():
            kind = f"{value.layout} {value.dtype}".replace("torch.", "")
            raise CheckpointError(f"{path}: tensor {name!r} is {kind}: expected plain floating-point weights")
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: tensor {name!r} holds NaN or infinity: the weights are unusable")
        state[name.removeprefix("module.")] = value.float()
    return state


def _check_complete(state: dict[str, Tensor], spec: ModelSpec, path: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in _meta_network(spec).state_dict().items()}
    for name, tensor in state.items():
        # λ is a scalar: published as shape (1,), saved as () by some.
        if name.endswith(".sa.gamma") and tensor.numel() == 1:
            state[name] = tensor.reshape(1)
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(
            f"{path} is not a whole {spec.name} network ({spec}): "
            f"{len(missing)} tensors missing {missing[:3]}, {len(extra)} not expected {extra[:3]}"
        )
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise CheckpointError(f"{path}: {name} has shape {tuple(state[name].shape)}, {spec.name} needs {shape}")


def _meta_network(spec: ModelSpec) -> MsanNetwork:
    with torch.device("meta"):
        return MsanNetwork(spec)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match.group(1) for name in state if (match := re.match(pattern, name))})


def _some(state: Mapping[str, Tensor]) -> str:
    names = sorted(state)
    return f"{len(names)} tensors {names[:3]}" if names else "no tensors"
