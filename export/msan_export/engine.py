"""Engines: an ONNX graph built by TensorRT-RTX or TensorRT, with proof of the types.

Both flavours are strongly typed: the engine computes in the types of the parsed network. So the
types of all heavy layers are read after parsing, and a network that is not what was asked for is
refused before anything is built.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from msan_export.artifact import Precision, TypeClaims, claims_of, metadata_of
from msan_runtime.atomic import write_bytes, write_text
from msan_runtime.attention import GLOBAL, TOKEN_PX, Attention
from msan_runtime.contract import INPUT_NAME
from msan_runtime.errors import CheckFailedError, MissingExtraError, MsanError
from msan_runtime.manifest import EngineEntry, Profile
from msan_runtime.targets import FP8_CARDS, Capability

__all__ = [
    "DEFAULT_PROFILE",
    "ENGINE_SUFFIX",
    "BuildError",
    "Engine",
    "EngineSpec",
    "Flavour",
    "LayerType",
    "build_engine",
    "check_types",
    "engine_entry",
    "engine_json",
    "refuse_cards",
    "save_engine",
    "silent_logger",
]

Flavour = Literal["tensorrt-rtx", "tensorrt"]

MODULES: dict[Flavour, tuple[str, str]] = {
    "tensorrt-rtx": ("tensorrt_rtx", "rtx"),
    "tensorrt": ("tensorrt", "tensorrt"),
}

DEFAULT_PROFILE = Profile(min=(1, 8, 8), opt=(1, 720, 1280), max=(1, 1920, 1920))
"""Full HD in one tile, upright or not; 57,600 attention keys at most. Larger pictures are tiled."""

ENGINE_SUFFIX: dict[Flavour, str] = {"tensorrt-rtx": "rtx.engine", "tensorrt": "trt.engine"}

ATTENTION_LEAST_KEYS = 4096
"""TensorRT-RTX 1.7 fuses attention only if the profile reaches this many keys, or two runs of attention at once:
of a batch, or of windows (found by trying)."""

HEAVY_LAYERS = {
    "CONVOLUTION": "convolution",
    "DECONVOLUTION": "deconvolution",
    "MATRIX_MULTIPLY": "matrix multiply",
    "ATTENTION_INPUT": "attention",
}

QUANTIZED: tuple[Precision, ...] = ("int8", "fp8")

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


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A built engine: its bytes, the library's version, its precision and the types of its heavy layers."""

    data: bytes
    spec: EngineSpec
    version: str
    precision: Precision
    layers: tuple[LayerType, ...]

    @property
    def layer_types(self) -> Mapping[str, int]:
        """Count of heavy layers by kind and type, for example ``{"convolution fp16": 192}``."""
        return dict(sorted(Counter(f"{layer.kind} {layer.dtype}" for layer in self.layers).items()))


def build_engine(graph: bytes, spec: EngineSpec, precision: Precision, *, on_phase: OnPhase | None = None) -> Engine:
    """Build an engine from an ONNX graph of the image contract.

    Args:
        graph: the ONNX file's bytes.
        spec: what to build.
        precision: what every convolution, deconvolution, matrix multiply and attention must be; of ``int8`` and
            ``fp8`` the convolutions that the graph lists as quantised, and FP16 the rest. What the graph lists as an
            island may be FP32.
        on_phase: told of progress.

    Raises:
        MissingExtraError: if the flavour is not installed.
        CheckFailedError: if the layers' types are not ``precision``; it names the layers.
        BuildError: if the graph cannot be parsed or built.
    """
    refuse_cards(spec, precision)
    trt = _module(spec.flavour)
    logger = silent_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        raise BuildError(f"{spec.flavour} cannot parse the graph: {_parser_errors(parser)}")
    layers = _layer_types(trt, network)
    model = onnx.load_model_from_string(graph)
    check_types(layers, precision, claims_of(model))
    if any(layer.kind == "attention" for layer in layers):
        _refuse_attention_without_kernel(spec, precision, _attention_of(model))
    config = _config(trt, builder, spec, on_phase)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise BuildError(f"{spec.flavour} could not build the engine: {logger.worst()}")
    return Engine(data=bytes(data), spec=spec, version=trt.__version__, precision=precision, layers=layers)


def engine_entry(engine: Engine, path: str, graph: str) -> EngineEntry:
    """The manifest's entry for ``engine``, stored at ``path`` and built from ``graph``."""
    return EngineEntry(
        path=path,
        flavour=engine.spec.flavour,
        flavour_version=engine.version,
        compute_capabilities=tuple(str(capability) for capability in engine.spec.capabilities),
        profile=engine.spec.profile,
        precision=engine.precision,
        layer_types=engine.layer_types,
        graph=graph,
    )


def save_engine(engine: Engine, folder: Path, graph: Path) -> Path:
    """Write ``engine`` into ``folder`` under the graph's name, with :func:`engine_json` beside it; both atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{graph.stem}.{ENGINE_SUFFIX[engine.spec.flavour]}"
    write_bytes(path, engine.data)
    write_text(path.with_name(f"{path.name}.json"), engine_json(engine, engine_entry(engine, path.name, graph.name)))
    return path


def engine_json(engine: Engine, entry: EngineEntry) -> str:
    """The engine's entry and every heavy layer with its type, as JSON."""
    layers = [dataclasses.asdict(layer) for layer in engine.layers]
    return json.dumps({**dataclasses.asdict(entry), "layers": layers}, indent=2) + "\n"


def check_types(layers: tuple[LayerType, ...], precision: Precision, claims: TypeClaims | None = None) -> None:
    """Refuse layers that do not compute in ``precision``, or in the types that the graph claims.

    Raises:
        CheckFailedError: naming the first few layers; or if a graph of ``int8`` or ``fp8`` quantises nothing.
    """
    told = claims or TypeClaims()
    if precision in QUANTIZED:
        _check_quantized(layers, precision, told)
        return
    wrong = [layer for layer in layers if layer.dtype != precision and not _is_island(layer, told)]
    if wrong:
        named = ", ".join(f"{layer.kind} {layer.name} is {layer.dtype}" for layer in wrong[:3])
        raise CheckFailedError(
            f"{len(wrong)} of {len(layers)} layers are not {precision}: {named}. "
            f"Build an export made with --precision {precision}, or give build the precision that the graph has"
        )


def _check_quantized(layers: tuple[LayerType, ...], precision: Precision, claims: TypeClaims) -> None:
    """The listed convolutions are of ``precision``, all of them; the rest is FP16, islands FP32."""
    found = {layer.name: layer.dtype for layer in layers}
    missing = sorted(name for name in claims.quantized if found.get(name) != precision)
    if missing or not claims.quantized:
        first = f"{missing[0]} is {found.get(missing[0], 'not in the network')}" if missing else "the graph lists none"
        raise CheckFailedError(
            f"{len(missing)} of {len(claims.quantized)} convolutions that should be {precision} are not: {first}. "
            f"Make the graph with: msan calibrate --precision {precision}"
        )
    rest = [layer for layer in layers if layer.name not in claims.quantized and not _is_island(layer, claims)]
    check_types(tuple(rest), "fp16")


def _is_island(layer: LayerType, claims: TypeClaims) -> bool:
    return layer.dtype == "fp32" and layer.name in claims.islands and layer.kind != "attention"


def refuse_cards(spec: EngineSpec, precision: Precision) -> None:
    """FP8 needs compute capability 8.9.

    Raises:
        BuildError: naming the cards that have none, and those that do.
    """
    old = [capability.sm for capability in spec.capabilities if not capability.has_fp8]
    if precision == "fp8" and old:
        raise BuildError(
            f"{', '.join(old)} has no FP8. {FP8_CARDS}. Use --gpu rtx40,rtx50, or calibrate with --precision int8"
        )


def _refuse_attention_without_kernel(spec: EngineSpec, precision: Precision, attention: Attention) -> None:
    """Say in words what TensorRT would say in C++."""
    if precision == "fp32":
        raise BuildError(
            f"{spec.flavour} has no FP32 kernel for the graph's Attention layers. "
            "Export and build with --precision fp16: attention then still accumulates in FP32"
        )
    batch, height, width = spec.profile.max
    if spec.flavour != "tensorrt-rtx" or batch > 1:
        return
    rows, columns = height // TOKEN_PX, width // TOKEN_PX
    one_run = attention.window_tokens is None or max(rows, columns) <= attention.window_tokens // 2
    if one_run and rows * columns < ATTENTION_LEAST_KEYS:
        raise BuildError(
            f"TensorRT-RTX has no fused attention kernel for a largest tile of {height}x{width}: "
            "give --max 512x512 or larger (262,144 px); smaller pictures are taken all the same"
        )


def _attention_of(model: onnx.ModelProto) -> Attention:
    """What the graph says of its attention; graphs of before it was said have ``global``."""
    return Attention.parse(metadata_of(model).get("attention", str(GLOBAL)))


def _module(flavour: Flavour) -> Any:
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
