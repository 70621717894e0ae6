"""FP16 three ways on the same samples: plain casting, ModelOpt AutoCast, and the search of ``msan calibrate``.

    pip install nvidia-modelopt onnx-graphsurgeon onnxslim lief onnxconverter-common onnxscript polygraphy
    python benchmarks/fp16.py MODEL.onnx [--json FILE]

The graph as it is, and with faults planted behind one of its convolutions: a value multiplied by a power of ten and
divided again, too large or too small for FP16 in between. Without ModelOpt its column is left out, and said.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from machine import describe_machine
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from msan_calib.casts import CastError, cast_to_float16, default_islands
from msan_calib.half import plan_float16
from msan_calib.network import PictureNetwork, load_network, network_of
from msan_calib.quality import Evaluator
from msan_calib.samples import SampleOptions, SampleSet, choose_samples
from msan_calib.walk import Walker
from msan_runtime.errors import MsanError

screen = Console(highlight=False)

FAULTS = ((0.25, (6e4, 100.0)), (0.5, (6e4, 100.0)), (0.75, (6e4, 100.0)), (0.5, (2e-5, 1e-3)))
"""Which convolution, as a share of all, and the factors behind it: each one fits into FP16."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    network = load_network(arguments.model)
    samples = choose_samples(options=SampleOptions(count=4, size_px=128))
    cases = {"as it is": network}
    for share, factors in FAULTS:
        cases[f"×{np.prod(factors):.0e} behind convolution {share:.0%}"] = network_of(
            planted(network.model, share, factors)
        )
    rows = [row for name, case in cases.items() for row in measured(name, case, samples)]
    if arguments.json is not None:
        body = {
            "machine": describe_machine(("onnx", "onnxruntime", "nvidia-modelopt")),
            "model": arguments.model.name,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(body, indent=2) + "\n")


def planted(model: onnx.ModelProto, share: float, factors: Sequence[float]) -> onnx.ModelProto:
    """The graph with factors behind one convolution, and their inverses behind them."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    convolutions = [index for index, node in enumerate(result.graph.node) if node.op_type == "Conv"]
    index = convolutions[int(share * len(convolutions))]
    name = result.graph.node[index].output[0]
    steps = [*factors, *(1 / factor for factor in factors)]
    names = [f"{name}_{step}" for step in range(len(steps))] + [name]
    result.graph.node[index].output[0] = names[0]
    for step, value in enumerate(steps):
        result.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), f"planted_{step}"))
        operands = [names[step], f"planted_{step}"]
        node = helper.make_node("Mul", operands, [names[step + 1]], name=f"planted_node_{step}")
        result.graph.node.insert(index + 1 + step, node)
    return result


def measured(name: str, network: PictureNetwork, samples: SampleSet) -> list[dict[str, Any]]:
    walker = Walker(network.model)
    feeds = [{network.input: network.feed(sample.blurred)} for sample in samples.calibration]
    references = [walker.run(feed)[network.output] for feed in feeds]
    ways: dict[str, Callable[[], onnx.ModelProto]] = {
        "plain cast": lambda: cast_to_float16(network.model, islands=()),
        "ModelOpt AutoCast": lambda: autocast_graph(network, feeds),
        "same, our form kept": lambda: autocast_graph(network, feeds, sorted(default_islands(network.model))),
        "msan calibrate": lambda: plan_float16(network, samples.calibration).model,
    }
    rows: list[dict[str, Any]] = []
    for way, make in ways.items():
        row: dict[str, Any] = {"case": name, "way": way, "worst_db": None, "fp32_nodes": None, "note": ""}
        try:
            model = make()
            quality = Evaluator(network, samples.calibration, references).measure(model)
            row |= {"worst_db": round(quality.worst_db, 1), "fp32_nodes": nodes_in_fp32(model)}
        except ImportError as error:
            row["note"] = f"left out: {str(error).splitlines()[0]}"
        except (MsanError, CastError) as error:
            row["note"] = f"no graph: {error}"
        row["worst_db"] = None if row["worst_db"] is None else str(row["worst_db"])
        words = f"{name:34} {way:19} {row['worst_db']!s:>7} dB, {row['fp32_nodes']} nodes in FP32 {row['note']}"
        screen.print(words, soft_wrap=True)
        rows.append(row)
    return rows


def autocast_graph(network: PictureNetwork, feeds: list[dict[str, Any]], kept: Sequence[str] = ()) -> onnx.ModelProto:
    """ModelOpt's graph, calibrated on the first of the samples; the nodes in ``kept`` stay FP32."""
    # No part of the test environment: it replaces packages.
    autocast: Any = importlib.import_module("modelopt.onnx.autocast")

    with tempfile.TemporaryDirectory() as folder:
        graph, data = Path(folder) / "graph.onnx", Path(folder) / "samples.npz"
        onnx.save(network.model, graph)
        # It takes one feed: the first sample.
        np.savez(data, **feeds[0])
        return autocast.convert_to_mixed_precision(
            str(graph),
            low_precision_type="fp16",
            keep_io_types=True,
            calibration_data=str(data),
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in kept] or None,
        )


def nodes_in_fp32(model: onnx.ModelProto) -> int:
    """Nodes, but for casts, that give FP32."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return sum(node.op_type != "Cast" and bool(floats.intersection(node.output)) for node in model.graph.node)


if __name__ == "__main__":
    main()
