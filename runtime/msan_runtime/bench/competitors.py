"""What is measured side by side: this bundle on each backend, the bare libraries, and what other rooms add.

Other rooms offer competitors through the entry-point group ``msan.bench``: a name, and a function of a
:class:`Setup` that gives a context manager of an :class:`Entrant`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args

from msan_runtime.bench.watched import WatchedBackend, watched_deblurrer
from msan_runtime.bundle import Bundle
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME, PictureArray
from msan_runtime.errors import BackendError, MissingExtraError, MsanError
from msan_runtime.select import BackendName

__all__ = ["OURS", "BenchError", "Entrant", "Opener", "Setup", "opened", "opener_named", "openers", "rivals"]

OURS = "msan:"
"""Starts the name of a competitor that is this bundle in a Deblurrer: ``msan:ort-cpu``."""

GROUP = "msan.bench"

ON_REQUEST = frozenset({"onnxruntime-fp16", "openvino-bf16"})
"""Competitors that run only if they are asked for by name."""

logger = logging.getLogger(__name__)


class BenchError(MsanError):
    """A measurement that cannot be made."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every competitor is opened with.

    Attributes:
        bundle: the network to run.
        threads: that a competitor on the CPU computes with.
        checkpoint: of the same network, for PyTorch; it finds or makes one up if ``None``.
    """

    bundle: Bundle
    threads: int
    checkpoint: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A competitor, ready to run.

    Attributes:
        run: from a blurred picture to a deblurred one: uint8 H×W×3, H and W multiples of 8.
        device: in words.
        same_weights: whether its weights are the bundle's, so that its results must be too.
        watched: the backend inside, for competitors that are ours.
    """

    run: Callable[[PictureArray], PictureArray]
    device: str
    same_weights: bool = True
    watched: WatchedBackend | None = None


Opener = Callable[[Setup], AbstractContextManager[Entrant]]


def rivals() -> tuple[str, ...]:
    """Names of the competitors that are not ours, those of other rooms last."""
    return (*sorted(_BARE), *sorted(entry.name for entry in entry_points(group=GROUP)))


def openers(backends: Sequence[str] | None = None, against: Sequence[str] | None = None) -> Mapping[str, Opener]:
    """How to open each competitor, by name.

    Args:
        backends: of this bundle; all if ``None``.
        against: names of rivals; all but those ``ON_REQUEST`` if ``None``.

    Raises:
        BenchError: for a name that there is not.
    """
    ours = get_args(BackendName) if backends is None else backends
    others = [name for name in rivals() if name not in ON_REQUEST] if against is None else against
    return {name: opener_named(name) for name in (*(OURS + backend for backend in ours), *others)}


def opener_named(name: str) -> Opener:
    """How to open the competitor called ``name``.

    Raises:
        BenchError: if there is none.
    """
    backends = get_args(BackendName)
    if name.startswith(OURS) and name.removeprefix(OURS) in backends:
        return partial(_open_ours, backend=name.removeprefix(OURS))
    if name in _BARE:
        return _BARE[name]
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not found:
        known = f"backends {', '.join(backends)}; to compare with {', '.join(rivals())}"
        raise BenchError(f"nothing to measure is called {name.removeprefix(OURS)!r}. There are: {known}")
    return partial(_open_entry, load=found[0].load)


@contextmanager
def opened(wanted: Mapping[str, Opener], setup: Setup, required: Collection[str]) -> Generator[Mapping[str, Entrant]]:
    """Open every competitor that can run here; the others are logged with their reasons.

    Raises:
        MsanError: if one of ``required`` cannot run, or none can.
    """
    with ExitStack() as stack:
        entrants: dict[str, Entrant] = {}
        for name, opener in wanted.items():
            try:
                entrants[name] = stack.enter_context(opener(setup))
            except MsanError as error:
                if name in required:
                    raise
                logger.warning("%s is left out: %s", name, error)
        if not entrants:
            raise BenchError("nothing here can run this bundle. Install a backend: pip install 'msan[cpu]'")
        yield entrants


@contextmanager
def _open_ours(setup: Setup, backend: str) -> Generator[Entrant]:
    deblurrer, watched = watched_deblurrer(setup.bundle, backend)
    with deblurrer:
        yield Entrant(run=deblurrer.deblur, device=watched.device, watched=watched)


def _open_entry(setup: Setup, load: Callable[[], Opener]) -> AbstractContextManager[Entrant]:
    try:
        opener = load()
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or "").partition(".")[0], "train") from error
    return opener(setup)


@contextmanager
def _open_onnxruntime(setup: Setup, precision: str = "fp32") -> Generator[Entrant]:
    """ONNX Runtime on a graph of the bundle, with nothing around it."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnxruntime", "cpu") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = setup.threads
    session = onnxruntime.InferenceSession(_graph(setup, precision), options, providers=["CPUExecutionProvider"])

    def run(picture: PictureArray) -> PictureArray:
        outputs: Any = session.run([OUTPUT_NAME], {INPUT_NAME: picture[None]})
        return outputs[0][0]

    yield Entrant(run=run, device=f"CPU, ONNX Runtime {onnxruntime.__version__}")


@contextmanager
def _open_openvino(setup: Setup, hint: str = "f32") -> Generator[Entrant]:
    """OpenVINO on the bundle's FP32 graph, with nothing around it."""
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingExtraError("openvino", "openvino") from error
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": setup.threads}
    request = core.compile_model(core.read_model(_graph(setup, "fp32"), b""), "CPU", options).create_infer_request()

    def run(picture: PictureArray) -> PictureArray:
        outputs: Any = request.infer({INPUT_NAME: picture[None]}, share_inputs=True)
        return outputs[0][0]

    yield Entrant(run=run, device=f"CPU, OpenVINO {openvino.__version__.partition('-')[0]}")


def _graph(setup: Setup, precision: str) -> bytes:
    graph = setup.bundle.graph(prefer=(precision,))
    if graph is None:
        raise BackendError(f"the bundle has no {precision} graph with uint8 pictures: deploy the checkpoint again")
    return setup.bundle.read(graph.path)


_BARE: Mapping[str, Opener] = {
    "onnxruntime": _open_onnxruntime,
    "onnxruntime-fp16": partial(_open_onnxruntime, precision="fp16"),
    "openvino": _open_openvino,
    "openvino-bf16": partial(_open_openvino, hint="bf16"),
}
