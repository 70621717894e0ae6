"""Building an engine from an ONNX graph with TensorRT-RTX or TensorRT: parse, read the types, build.

Both flavours are strongly typed: the engine computes in the types of the parsed network.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msan_runtime.contract import INPUT_NAME
from msan_runtime.errors import MissingExtraError, MsanError
from msan_runtime.manifest import Profile
from msan_runtime.targets import Capability

__all__ = [
    "DEFAULT_PROFILE",
    "MODULES",
    "BuildError",
    "EngineSpec",
    "Flavour",
    "LayerType",
    "OnPhase",
    "ParsedGraph",
    "count_types",
    "import_flavour",
    "parse_graph",
    "silent_logger",
]

Flavour = Literal["tensorrt-rtx", "tensorrt"]

MODULES: dict[Flavour, tuple[str, str]] = {
    "tensorrt-rtx": ("tensorrt_rtx", "rtx"),
    "tensorrt": ("tensorrt", "tensorrt"),
}

DEFAULT_PROFILE = Profile(min=(1, 8, 8), opt=(1, 720, 1280), max=(1, 1920, 1920))
"""Full HD in one tile, upright or not; 57,600 attention keys at most. Larger pictures are tiled."""

HEAVY_LAYERS = {
    "CONVOLUTION": "convolution",
    "DECONVOLUTION": "deconvolution",
    "MATRIX_MULTIPLY": "matrix multiply",
    "ATTENTION_INPUT": "attention",
}

OnPhase = Callable[[str, float], None]
"""Called with a phase of the build and the share of its steps done, 0 to 1."""


class BuildError(MsanError):
    """An engine that could not be built."""


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """What to build.

    Attributes:
        flavour: ``tensorrt-rtx`` (ahead of time, no GPU needed) or ``tensorrt`` (for the GPU at hand).
        profile: the one optimization profile.
        capabilities: compute capabilities; TensorRT-RTX only.
    """

    flavour: Flavour = "tensorrt-rtx"
    profile: Profile = DEFAULT_PROFILE
    capabilities: tuple[Capability, ...]


@dataclass(frozen=True, kw_only=True)
class LayerType:
    """A heavy layer of the parsed network and the type of its operands, ``fp16``, ``fp32`` or another."""

    kind: str
    name: str
    dtype: str


def count_types(layers: Iterable[LayerType]) -> Mapping[str, int]:
    """Count of heavy layers by kind and type, for example ``{"convolution fp16": 192}``."""
    return dict(sorted(Counter(f"{layer.kind} {layer.dtype}" for layer in layers).items()))


class ParsedGraph:
    """A graph that TensorRT has parsed, with the type of every heavy layer; nothing is built yet."""

    def __init__(self, trt: Any, graph: bytes, flavour: Flavour) -> None:
        """Parse ``graph``.

        Raises:
            BuildError: if TensorRT cannot.
        """
        self._trt = trt
        self._flavour: Flavour = flavour
        self._logger = silent_logger(trt)
        self._builder = trt.Builder(self._logger)
        self._network = self._builder.create_network(_network_flags(trt))
        # The parser owns what the network refers to.
        self._parser = trt.OnnxParser(self._network, self._logger)
        if not self._parser.parse(graph):
            raise BuildError(f"{flavour} cannot parse the graph: {_parser_errors(self._parser)}")
        self.layers = _layer_types(trt, self._network)

    def build(self, spec: EngineSpec, *, on_phase: OnPhase | None = None) -> bytes:
        """The engine's bytes.

        Raises:
            BuildError: if TensorRT cannot build it.
        """
        config = _config(self._trt, self._builder, spec, on_phase)
        data = self._builder.build_serialized_network(self._network, config)
        if data is None:
            raise BuildError(f"{self._flavour} could not build the engine: {self._logger.worst()}")
        return bytes(data)


def parse_graph(graph: bytes, flavour: Flavour) -> ParsedGraph:
    """Parse the ONNX file in ``graph``.

    Raises:
        MissingExtraError: if the flavour is not installed.
        BuildError: if it cannot be parsed.
    """
    return ParsedGraph(import_flavour(flavour), graph, flavour)


def import_flavour(flavour: Flavour) -> Any:
    """The module of a flavour.

    Raises:
        MissingExtraError: if it is not installed.
    """
    name, extra = MODULES[flavour]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(name, extra) from error


def silent_logger(trt: Any) -> Any:
    """A logger that prints nothing and keeps the library's complaints for messages: ``worst()``."""

    class RecordingLogger(trt.ILogger):
        """Keeps what the library complains of, for the error message; prints nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.complaints: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.complaints.append(message)

        def worst(self) -> str:
            return self.complaints[0][:400] if self.complaints else "no reason given"

    return RecordingLogger()


def _network_flags(trt: Any) -> int:
    """Strongly typed, where that is still a choice (TensorRT 10; later releases always are)."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parser_errors(parser: Any) -> str:
    found = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    return found[0][:400] if found else "no reason given"


def _config(trt: Any, builder: Any, spec: EngineSpec, on_phase: OnPhase | None) -> Any:
    config = builder.create_builder_config()
    # TF32 is on by default, and is not FP32.
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    shapes = [(*shape, 3) for shape in (spec.profile.min, spec.profile.opt, spec.profile.max)]
    profile.set_shape(INPUT_NAME, *shapes)
    config.add_optimization_profile(profile)
    if spec.flavour == "tensorrt-rtx":
        _set_capabilities(trt, config, spec.capabilities)
    if on_phase is not None:
        config.progress_monitor = _progress_monitor(trt, on_phase)
    return config


def _set_capabilities(trt: Any, config: Any, capabilities: tuple[Capability, ...]) -> None:
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        member = f"SM{capability.major}{capability.minor}"
        if member not in trt.ComputeCapability.__members__:
            raise BuildError(f"TensorRT-RTX {trt.__version__} has no {capability.sm}. Use --flavour tensorrt for it")
        config.set_compute_capability(getattr(trt.ComputeCapability, member), index)


def _progress_monitor(trt: Any, on_phase: OnPhase) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Passes the builder's phases on."""

        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del parent_phase
            self.steps[phase_name] = max(1, num_steps)
            on_phase(phase_name, 0.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            on_phase(phase_name, min(1.0, (step + 1) / self.steps.get(phase_name, 1)))
            return True

        def phase_finish(self, phase_name: str) -> None:
            on_phase(phase_name, 1.0)

    return Monitor()


def _layer_types(trt: Any, network: Any) -> tuple[LayerType, ...]:
    """Every heavy layer of a parsed network with the type that it computes in."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}
    found: list[LayerType] = []
    for layer in layers:
        kind = HEAVY_LAYERS.get(layer.type.name)
        if kind == "attention":
            dtypes = [_stored_type(trt, operand, makers) for operand in _inputs(layer)]
        elif kind is not None:
            outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
            dtypes = _quantized_types(trt, layer, makers) or [tensor.dtype for tensor in (*_inputs(layer), *outputs)]
        else:
            continue
        found.append(LayerType(kind=kind, name=layer.name, dtype=_widest(dtypes)))
    return tuple(found)


def _inputs(layer: Any) -> list[Any]:
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor for tensor in tensors if tensor is not None]


def _quantized_types(trt: Any, layer: Any, makers: Mapping[str, Any]) -> list[Any]:
    """The types before dequantisation, if that is where both the input and the weights of a convolution come from."""
    found = [makers.get(tensor.name) for tensor in _inputs(layer)[:2]]
    pair = [maker for maker in found if maker is not None and maker.type == trt.LayerType.DEQUANTIZE]
    return [maker.get_input(0).dtype for maker in pair] if len(pair) == 2 else []


def _stored_type(trt: Any, operand: Any, makers: Mapping[str, Any]) -> Any:
    """The type that an attention operand (Q, K or V) has in memory.

    FP16 operands cast to FP32 right before the attention layer are how FP32 accumulation is asked
    for: the kernel reads FP16. Between cast and layer the parser puts the multiplication by the scale.
    """
    maker = makers.get(operand.name)
    if maker is not None and maker.type == trt.LayerType.ELEMENTWISE:
        maker = makers.get(maker.get_input(0).name)
    if maker is not None and maker.type == trt.LayerType.CAST:
        return maker.get_input(0).dtype
    return operand.dtype


def _widest(dtypes: list[Any]) -> str:
    """The widest type, so that a layer with one FP32 side is not called FP16."""
    names = [_short(dtype) for dtype in dtypes]
    return next((name for name in ("fp32", "fp16") if name in names), names[0])


def _short(dtype: Any) -> str:
    name: str = dtype.name
    return {"HALF": "fp16", "FLOAT": "fp32"}.get(name, name.lower())
