"""Engines: an ONNX graph built by TensorRT-RTX or TensorRT, with proof of the types.

Both flavours are strongly typed: the engine computes in the types of the parsed network. So the
types of all heavy layers are read after parsing, and a network that is not what was asked for is
refused before anything is built.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from msan_export.artifact import Precision, TypeClaims, claims_of, metadata_of
from msan_runtime.atomic import write_bytes, write_text
from msan_runtime.attention import GLOBAL, TOKEN_PX, Attention
from msan_runtime.engines.building import (
    DEFAULT_PROFILE,
    BuildError,
    EngineSpec,
    Flavour,
    LayerType,
    OnPhase,
    count_types,
    import_flavour,
    parse_graph,
)
from msan_runtime.errors import CheckFailedError
from msan_runtime.manifest import EngineEntry
from msan_runtime.targets import FP8_CARDS

__all__ = [
    "DEFAULT_PROFILE",
    "ENGINE_SUFFIX",
    "BuildError",
    "Engine",
    "EngineSpec",
    "Flavour",
    "LayerType",
    "OnPhase",
    "build_engine",
    "check_types",
    "engine_entry",
    "engine_json",
    "refuse_cards",
    "save_engine",
]

ENGINE_SUFFIX: dict[Flavour, str] = {"tensorrt-rtx": "rtx.engine", "tensorrt": "trt.engine"}

ATTENTION_LEAST_KEYS = 4096
"""TensorRT-RTX 1.7 fuses attention only if the profile reaches this many keys, or two runs of attention at once:
of a batch, or of windows (found by trying)."""

QUANTIZED: tuple[Precision, ...] = ("int8", "fp8")


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
        return count_types(self.layers)


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
    parsed = parse_graph(graph, spec.flavour)
    model = onnx.load_model_from_string(graph)
    check_types(parsed.layers, precision, claims_of(model))
    if any(layer.kind == "attention" for layer in parsed.layers):
        _refuse_attention_without_kernel(spec, precision, _attention_of(model))
    data = parsed.build(spec, on_phase=on_phase)
    version = import_flavour(spec.flavour).__version__
    return Engine(data=data, spec=spec, version=version, precision=precision, layers=parsed.layers)


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
