"""INT8 and FP8: what is written, held against formulas and ONNX's own reference; which blocks are chosen."""

from __future__ import annotations

import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from tests.calib.graphs import plain_graph, set_weight, weight_of

from msan_calib.calibrate import CalibrationOptions, calibrate
from msan_calib.network import CalibrationError, PictureNetwork, network_of
from msan_calib.policy import blocks_of, convolutions_of
from msan_calib.qdq import dequantized
from msan_calib.samples import Sample, SampleOptions, SampleSet
from msan_calib.scales import Histograms, QuantizedType, RangeMethod, activation_scale, channel_scales
from msan_calib.walk import Walker
from msan_runtime.errors import CheckFailedError

Pictures = tuple[Sample, ...]


def sample_set(pictures: Pictures) -> SampleSet:
    return SampleSet(
        source="test", options=SampleOptions(), calibration=pictures[:2], held_out=pictures[2:], sha256="0" * 64
    )


def types_by_convolution(model: onnx.ModelProto) -> dict[str, int]:
    """The type that each convolution's weight is stored in."""
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            maker = makers.get(node.input[1])
            found[node.name] = stored[maker.input[0] if maker is not None else node.input[1]]
    return found


@pytest.mark.parametrize(("kind", "stored"), [("int8", TensorProto.INT8), ("fp8", TensorProto.FLOAT8E4M3FN)])
def test_inner_convolutions_are_quantised_and_the_ends_are_not(
    kind: QuantizedType, stored: int, pictures: Pictures
) -> None:
    network = network_of(plain_graph())
    result = calibrate(network, sample_set(pictures), CalibrationOptions(precision=kind, budget_db=1.0))
    onnx.checker.check_model(result.model, full_check=True)
    found = types_by_convolution(result.model)
    inner = {f"layer/{index}" for index in range(1, 7)}
    assert set(result.quantized) == inner
    assert {name for name, kind in found.items() if kind == stored} == inner
    assert {found["layer/0"], found["layer/7"]} == {TensorProto.FLOAT16}
    assert result.choice is not None
    assert result.choice.point.loss_db <= 1.0


def test_int8_runs_as_the_formula_says(pictures: Pictures) -> None:
    """One quantised convolution, computed by hand from its scales."""
    network = network_of(plain_graph(layers=1))
    result = calibrate(network, sample_set(pictures), CalibrationOptions(precision="int8", budget_db=3.0))
    tensors: dict[str, np.ndarray] = {}
    Walker(result.model).run(
        {"picture": network.feed(pictures[3].blurred)}, lambda step: tensors.update(step.float_outputs())
    )
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    scale = np.float32(weights["layer/1_input_scale"])
    taken = np.clip(np.rint(tensors["t0"].astype(np.float32) / scale), -128, 127) * scale
    kernel = weights["k1_int8"].astype(np.float32) * weights["k1_int8_scale"].reshape(-1, 1, 1, 1)
    padded = np.pad(taken, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    expected = np.einsum("nchwij,ocij->nohw", windows, kernel) + weights["layer/1_bias"].reshape(1, -1, 1, 1)
    assert np.abs(tensors["t1"].astype(np.float32) - expected).max() < 0.01 * np.abs(expected).max()


def test_bias_correction_takes_the_mean_shift_away(pictures: Pictures) -> None:
    network = network_of(plain_graph())
    shifts: dict[bool, float] = {}
    for correct in (False, True):
        options = CalibrationOptions(precision="int8", budget_db=5.0, correct_bias=correct, method="percentile")
        model = calibrate(network, sample_set(pictures), options).model
        means = [channel_means(network, network.model, pictures), channel_means(network, model, pictures)]
        shifts[correct] = float(np.abs(means[0] - means[1]).mean())
    assert shifts[True] < 0.7 * shifts[False]


def channel_means(network: PictureNetwork, model: onnx.ModelProto, pictures: Pictures) -> np.ndarray:
    """Means of the channels of the first quantised convolution, whose operands are alike in both graphs."""
    found: list[np.ndarray] = []
    for picture in pictures[:2]:
        tensors: dict[str, np.ndarray] = {}
        Walker(model).run({"picture": network.feed(picture.blurred)}, lambda s, t=tensors: t.update(s.float_outputs()))
        found.append(tensors["t1"].astype(np.float64).mean(axis=(0, 2, 3)))
    return np.mean(found, axis=0)


def test_a_dead_channel_and_an_outlier_do_no_harm(pictures: Pictures) -> None:
    model = plain_graph()
    dead, outlying = weight_of(model, "k2").copy(), weight_of(model, "k4").copy()
    dead[3] = 0
    outlying[5, 0, 0, 0] *= 300
    network = network_of(set_weight(set_weight(model, "k2", dead), "k4", outlying))
    result = calibrate(network, sample_set(pictures), CalibrationOptions(precision="int8", budget_db=0.5))
    assert result.choice is not None
    assert result.choice.point.loss_db <= 0.5
    scales = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer if t.name.endswith("_scale")}
    assert all((values > 0).all() and np.isfinite(values).all() for values in scales.values())


def test_what_no_block_meets_is_refused_with_figures(pictures: Pictures) -> None:
    network = network_of(plain_graph())
    # Against the truth a loss may be negative by chance; where that is not known, it is what FP32 is away.
    pictures = tuple(replace(picture, sharp=None) for picture in pictures)
    with pytest.raises(CheckFailedError, match=r"no block can be int8 within 1e-09 dB: FP16 alone loses .* dB") as told:
        calibrate(network, sample_set(pictures), CalibrationOptions(precision="int8", budget_db=1e-9))
    assert told.value.exit_code == 1


def test_the_frontier_grows_with_the_budget(pictures: Pictures) -> None:
    network = network_of(plain_graph(layers=10))
    shares: list[float] = []
    for budget in (0.004, 0.02, 1.0):
        try:
            choice = calibrate(
                network, sample_set(pictures), CalibrationOptions(precision="int8", budget_db=budget)
            ).choice
            assert choice is not None
            assert choice.point.loss_db <= budget
            assert choice.point in choice.frontier
            shares.append(choice.point.flops_share)
        except CheckFailedError:
            shares.append(0.0)
    assert shares == sorted(shares)
    assert shares[-1] > 0.8


def test_a_network_that_enlarges_pictures_is_judged_without_their_truth(pictures: Pictures) -> None:
    model = plain_graph()
    output = model.graph.node[-1]
    output.output[0] = "small"
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "twice")
    model.graph.initializer.append(scales)
    model.graph.node.append(onnx.helper.make_node("Resize", ["small", "", "twice"], ["out"], name="enlarge"))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for name in ("n", "c", "h2", "w2"):
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_param = name
    result = calibrate(network_of(model), sample_set(pictures), CalibrationOptions(precision="int8", budget_db=3.0))
    assert result.choice is not None
    assert not result.choice.truth_known


@pytest.mark.parametrize("budget", [0.0, -0.1, math.nan, math.inf])
def test_a_budget_is_above_zero(budget: float) -> None:
    with pytest.raises(CalibrationError, match="a budget is more than 0 dB"):
        CalibrationOptions(precision="int8", budget_db=budget)


def test_flops_are_counted_as_by_hand(pictures: Pictures) -> None:
    network = network_of(plain_graph(layers=2))
    result = calibrate(network, sample_set(pictures), CalibrationOptions(precision="int8", budget_db=1.0))
    by_name = {entry.node: entry for entry in result.convolutions}
    assert by_name["layer/0"].flops == 2 * 40 * 48 * 8 * 3 * 9
    assert by_name["layer/1"].flops == 2 * 40 * 48 * 8 * 8 * 9
    assert by_name["layer/0"].kept.startswith("first")
    assert by_name["layer/3"].kept.startswith("last")


def test_what_is_kept_is_told_by_form_alone() -> None:
    from onnx import helper

    model = plain_graph(layers=3)
    nodes = list(model.graph.node)
    nodes[1].attribute.append(helper.make_attribute("group", 1))
    entries = {entry.node: entry.kept for entry in convolutions_of(model, {}, {"layer/2"})}
    assert entries["layer/2"] == "it stays FP32"
    assert entries["layer/1"] == ""
    blocks = blocks_of(model, convolutions_of(model, {}, {"layer/2"}))
    assert [block.nodes for block in blocks] == [("layer/1",), ("layer/3",)]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["int8", "fp8"]), st.floats(1e-3, 1e3))
def test_no_weight_is_clipped_and_none_is_off_by_more_than_half_a_step(
    seed: int, kind: QuantizedType, size: float
) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.normal(0, size, (4, 3, 3, 3))).astype(np.float32)
    scales = channel_scales(weight, kind).reshape(-1, 1, 1, 1)
    error = np.abs(dequantized(weight, scales, kind) - weight)
    step = scales.astype(np.float64) / 2
    if kind == "fp8":
        step = np.maximum(np.abs(weight) / 16, scales.astype(np.float64) * 2.0**-10)
    assert (error <= step * 1.001 + 1e-7).all()


def test_fp8_values_are_those_of_the_format() -> None:
    values = np.array([0.0, 1.0, -448.0, 460.0, 1e9, 2.0**-10, 17.3], np.float32)
    expected = np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(dequantized(values, np.float16(1), "fp8"), expected)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_thresholds_lie_within_what_was_seen(method: RangeMethod) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, 200_000).astype(np.float32)
    values[0] = 40.0
    histograms = Histograms({"x": 40.0})
    for part in np.split(values, 10):
        histograms.add("x", part)
    threshold = histograms.threshold("x", method, 127)
    assert 0 < threshold <= 40.0
    if method != "minmax":
        assert threshold < 20
    assert activation_scale(threshold, "int8") >= np.float16(threshold / 127 * 0.99)


def test_the_mse_threshold_is_the_best_of_all_by_direct_search() -> None:
    rng = np.random.default_rng(2)
    values = rng.laplace(0, 1, 100_000).astype(np.float32)
    limit = float(np.abs(values).max())
    histograms = Histograms({"x": limit})
    histograms.add("x", values)
    found = histograms.threshold("x", "mse", 127)

    def error(threshold: float) -> float:
        step = threshold / 127
        return float(np.mean(np.square(np.clip(np.rint(values / step), -127, 127) * step - values)))

    best = min(error(limit * share) for share in np.linspace(0.1, 1.0, 91))
    assert error(found) <= 1.05 * best
