"""FP16 with proof, on graphs of another maker: planted faults are found, in few runs, and what is written holds."""

from __future__ import annotations

import math
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tests.calib.graphs import plain_graph, plant_scaling, set_weight, weight_of

from msan_calib.half import HalfPlan, plan_float16
from msan_calib.network import network_of
from msan_calib.samples import Sample
from msan_calib.walk import Walker

Pictures = tuple[Sample, ...]

LAYERS = 6
TENSORS = [f"t{index}" for index in range(LAYERS + 1)] + [f"s{index}" for index in range(1, LAYERS + 1)]


def bound(model: onnx.ModelProto) -> float:
    return 2 * math.log2(len(model.graph.node)) + 5


def in_fp32(plan: HalfPlan) -> set[str]:
    return {island.node for island in plan.islands if island.kind != "form"}


def test_a_healthy_graph_needs_no_island(pictures: Pictures) -> None:
    network = network_of(plain_graph())
    plan = plan_float16(network, pictures)
    assert in_fp32(plan) == set()
    assert plan.evaluations == 2
    assert plan.quality.worst_db > 55
    kinds = {t.data_type for t in plan.model.graph.initializer}
    assert kinds == {TensorProto.FLOAT16}


@pytest.mark.parametrize("tensor", TENSORS)
def test_a_planted_overflow_is_found_wherever_it_is(tensor: str, pictures: Pictures) -> None:
    model = plant_scaling(plain_graph(layers=LAYERS), tensor, 1e6)
    plan = plan_float16(network_of(model), pictures)
    assert plan.plain.worst_db == -math.inf
    assert plan.quality.worst_db > 55
    assert {"planted/up", "planted/down"} <= in_fp32(plan) <= {"planted/up", "planted/down"}
    assert plan.evaluations <= bound(model)
    why = next(island for island in plan.islands if island.node == "planted/up")
    assert why.kind == "overflow"
    assert f"{tensor}_big reaches" in why.reason
    assert why.buys_db == math.inf


def test_a_fault_in_the_arithmetic_on_the_picture_is_called_what_it_is(pictures: Pictures) -> None:
    plan = plan_float16(network_of(plant_scaling(plain_graph(), "last", 1e8)), pictures)
    assert plan.quality.worst_db > 55
    kinds = {island.node: island.kind for island in plan.islands}
    assert (kinds["planted/up"], kinds["planted/down"]) == ("overflow", "overflow")


@pytest.mark.parametrize("tensor", ["t1", "t3", "s5"])
def test_a_planted_underflow_is_found_by_its_pictures(tensor: str, pictures: Pictures) -> None:
    model = plant_scaling(plain_graph(layers=LAYERS), tensor, 1e-7)
    plan = plan_float16(network_of(model), pictures)
    assert plan.plain.worst_db < 55
    assert plan.quality.worst_db > 55
    assert in_fp32(plan) == {"planted/up", "planted/down"}
    bought = [island.buys_db for island in plan.islands if island.kind == "accuracy"]
    assert all(gain is not None and gain > 3 for gain in bought)
    assert plan.evaluations <= bound(model)


def test_a_weight_that_fp16_cannot_hold_keeps_its_node_in_fp32(pictures: Pictures) -> None:
    model = plain_graph()
    kernel = weight_of(model, "k3").copy()
    kernel[0, 0, 0, 0] = 1e5
    quiet = weight_of(model, "k4") * np.float32(1e-6)
    plan = plan_float16(network_of(set_weight(set_weight(model, "k3", kernel), "k4", quiet)), pictures)
    reasons = {island.node: island.reason for island in plan.islands}
    assert re.match(r"(t3|weight k3) reaches [12]", reasons["layer/3"])
    assert plan.quality.worst_db > 55


def test_no_half_tensor_comes_nearer_to_the_end_than_the_margin(pictures: Pictures) -> None:
    network = network_of(plant_scaling(plain_graph(), "t2", 9e3))
    for margin, kept in ((1.0, False), (64.0, True)):
        plan = plan_float16(network, pictures, margin=margin)
        assert ("planted/up" in in_fp32(plan)) == kept
        largest: list[float] = []

        def record(step: object, largest: list[float] = largest) -> None:
            for values in step.float_outputs().values():  # type: ignore[attr-defined]
                if values.dtype == np.float16:
                    largest.append(float(np.abs(values.astype(np.float64)).max(initial=0)))

        walker = Walker(plan.model)
        for sample in pictures:
            walker.run({"picture": network.feed(sample.blurred)}, record)
        assert max(largest) * margin <= 65504 * 1.001


def test_the_search_prefers_few_islands_where_every_node_adds_a_little(pictures: Pictures) -> None:
    model = plain_graph(layers=8)
    network = network_of(model)
    plain = plan_float16(network, pictures, least_psnr_db=1.0)
    strict = plan_float16(network, pictures, least_psnr_db=plain.quality.worst_db + 3)
    assert strict.quality.worst_db >= plain.quality.worst_db + 3
    assert 0 < len(in_fp32(strict)) < len(model.graph.node)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_layouts_and_interfaces_stay(layout: str, pictures: Pictures) -> None:
    network = network_of(plain_graph(layout=layout))
    plan = plan_float16(network, pictures[:1])
    onnx.checker.check_model(plan.model, full_check=True)
    ends = (*plan.model.graph.input, *plan.model.graph.output)
    assert {value.type.tensor_type.elem_type for value in ends} == {TensorProto.FLOAT}
    assert network.layout == layout
