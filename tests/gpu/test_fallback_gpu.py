"""Which backend is taken on a machine with a GPU, what makes it pass one over, and that it says so."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.gpu.device import DEVICE_BACKENDS, FLAVOURS, MSAN, changed_bundle, ran
from tests.gpu.pictures import assert_alike, blurred_picture

from msan_runtime import Deblurrer
from msan_runtime.backends.cuda import compute_capability
from msan_runtime.backends.ort import PROVIDERS
from msan_runtime.bundle import open_bundle
from msan_runtime.engines.building import EngineSpec, parse_graph
from msan_runtime.errors import BackendError, EngineUnfitError, MsanError, SelfTestError
from msan_runtime.manifest import Profile
from msan_runtime.select import BACKENDS, select_backend
from msan_runtime.targets import capabilities_named

pytestmark = pytest.mark.gpu

BUILDING = "building an engine for sm_"
OLD_RELEASE = "0.9.0"
NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1"}


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder in which no engine is kept and no self-test passed."""
    folder = tmp_path / "cache"
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(folder))
    return folder


@pytest.fixture
def old_bundle(native_name: str, tmp_path: Path) -> Path:
    """A bundle whose engine another release built; without one where msan ships none, as for classic TensorRT."""
    engines = open_bundle().manifest.engines if native_name == "rtx" else ()
    stale = tuple(dataclasses.replace(engine, flavour_version=OLD_RELEASE) for engine in engines)
    return changed_bundle(tmp_path / "old", {}, engines=stale)


# The order


@pytest.mark.parametrize("name", DEVICE_BACKENDS)
def test_a_backend_that_loads_is_one_that_is_right(name: str) -> None:
    try:
        select_backend(open_bundle(), name).backend.close()
    except SelfTestError:
        raise
    except MsanError as error:
        pytest.skip(str(error))


def test_auto_takes_the_first_that_works_and_says_why_not_the_others(device_name: str) -> None:
    selection = select_backend(open_bundle())
    with selection.backend as backend:
        assert backend.name == device_name
    before = BACKENDS[: BACKENDS.index(device_name)]
    assert len(selection.passed_over) == len(before)
    for name, told in zip(before, selection.passed_over, strict=True):
        with pytest.raises(BackendError) as refused:
            select_backend(open_bundle(), name)
        assert str(refused.value) == f"backend {told}"


# Engines that do not fit


@pytest.mark.usefixtures("empty_cache")
def test_an_engine_that_does_not_fit_is_built_again_and_kept(
    native_name: str, old_bundle: Path, reference: Deblurrer, caplog: pytest.LogCaptureFixture
) -> None:
    picture = blurred_picture(250, 371)
    with Deblurrer.load(old_bundle, native_name) as deblurrer:
        assert_alike(deblurrer.deblur(picture), reference.deblur(picture))
    assert BUILDING in caplog.text
    assert native_name == "tensorrt" or f"TensorRT-RTX {OLD_RELEASE}" in caplog.text
    caplog.clear()
    with Deblurrer.load(old_bundle, native_name) as deblurrer:
        assert_alike(deblurrer.deblur(picture), reference.deblur(picture))
    assert BUILDING not in caplog.text


@pytest.mark.usefixtures("empty_cache")
def test_the_next_backend_is_taken_where_none_may_be_built(
    native_name: str, old_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EngineUnfitError):
        Deblurrer.load(old_bundle, native_name, rebuild=False)
    with Deblurrer.load(old_bundle, rebuild=False) as deblurrer:
        name, passed_over = deblurrer.backend.name, deblurrer.passed_over
    assert BACKENDS.index(name) > BACKENDS.index(native_name)
    reason = next(told for told in passed_over if told.startswith(f"{native_name}: "))
    assert f"running on {name}, since" in caplog.text
    assert reason in caplog.text
    assert BUILDING not in caplog.text


@pytest.mark.usefixtures("empty_cache")
def test_an_engine_for_another_gpu_is_built_again_or_said_to_be_slower(
    native_name: str, tmp_path: Path, reference: Deblurrer, caplog: pytest.LogCaptureFixture
) -> None:
    if native_name != "rtx":
        pytest.skip(f"engines of {FLAVOURS[native_name]} are not built for other GPUs")
    major, minor = compute_capability().split(".")
    others = [one for one in capabilities_named("rtx30,rtx50") if one.major != int(major)]
    bundle = open_bundle()
    (shipped,) = bundle.manifest.engines
    profile = Profile(min=(1, 64, 64), opt=(1, 256, 384), max=(1, 512, 512))
    spec = EngineSpec(profile=profile, capabilities=(others[0],))
    data = parse_graph(bundle.read(shipped.graph), "tensorrt-rtx").build(spec)
    foreign = dataclasses.replace(shipped, compute_capabilities=(str(others[0]),), profile=profile)
    folder = changed_bundle(tmp_path / "foreign", {shipped.path: data}, engines=(foreign,))
    picture = blurred_picture(256, 384)
    with Deblurrer.load(folder, "rtx") as deblurrer:
        assert_alike(deblurrer.deblur(picture), reference.deblur(picture))
    assert f"{BUILDING}{major}{minor}" in caplog.text or "runs slower here" in caplog.text


# The CPU in the GPU's place


@pytest.mark.usefixtures("device_name")
@pytest.mark.parametrize("name", DEVICE_BACKENDS)
def test_a_backend_without_its_gpu_is_an_error(name: str, tmp_path: Path) -> None:
    source = written(tmp_path / "in.png")
    done = ran(MSAN, "deblur", source, "-o", tmp_path / "out.png", "--backend", name, changes=NO_GPU)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(lines_of(done.stderr, f"error: backend {name}: ")) == 1
    assert not (tmp_path / "out.png").exists()


@pytest.mark.usefixtures("device_name")
def test_the_cpu_is_taken_aloud_where_the_gpu_is_hidden(tmp_path: Path) -> None:
    source = written(tmp_path / "in.png")
    done = ran(MSAN, "deblur", source, "-o", tmp_path / "out.png", changes=NO_GPU)
    assert done.returncode == 0, done.stderr
    (note,) = lines_of(done.stderr, "note: running on ")
    assert not note.startswith(tuple(f"note: running on {name}," for name in DEVICE_BACKENDS))
    for name in DEVICE_BACKENDS:
        assert f"{name}: " in note


@pytest.mark.usefixtures("ort_cuda")
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_no_heavy_node_runs_on_the_cpu(
    precision: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """ONNX Runtime gives nodes without a CUDA kernel to the CPU and says nothing: early releases, attention."""
    bundle = open_bundle()
    graph = bundle.graph(prefer=(precision,))
    assert graph is not None
    placed = placement(bundle.read(graph.path), PROVIDERS["ort-cuda"], tmp_path)
    on_cpu = sorted({kind for kind, provider in placed if provider != PROVIDERS["ort-cuda"]})
    record_property("node types on the CPU", ", ".join(on_cpu))
    heavy = [kind for kind, _ in placed if "Conv" in kind or "Attention" in kind]
    assert {"Conv", "ConvTranspose", "Attention"} <= {kind.removeprefix("Fused").removeprefix("Nhwc") for kind in heavy}
    assert not set(heavy).intersection(on_cpu)


def placement(graph: bytes, provider: str, folder: Path) -> list[tuple[str, str]]:
    """Type and provider of every node that a run of ``graph`` went through."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(graph, options, providers=[provider])
    session.run(None, {"blurred": blurred_picture(128, 128)[None]})
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    arguments = [event["args"] for event in events if event.get("cat") == "Node"]
    return [(told["op_name"], told["provider"]) for told in arguments if "provider" in told]


# The self-test


@pytest.mark.usefixtures("empty_cache")
def test_a_backend_that_gives_another_picture_is_not_used(
    device_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every backend does, for the picture that is expected is another one."""
    test = open_bundle().manifest.self_test
    assert test is not None
    with Image.open(open_bundle().folder / test.deblurred) as image:
        inverted = Image.fromarray(255 - np.asarray(image.convert("RGB")))
    file = io.BytesIO()
    inverted.save(file, "PNG")
    folder = changed_bundle(tmp_path / "bundle", {test.deblurred: file.getvalue()})
    with pytest.raises(SelfTestError, match=f"backend {device_name}: failed the bundle's self-test and is not used"):
        Deblurrer.load(folder, device_name)
    assert any(record.levelno == logging.ERROR and device_name in record.message for record in caplog.records)
    with pytest.raises(BackendError, match=rf"no backend can run this bundle here.*{device_name}: failed"):
        Deblurrer.load(folder)


@pytest.mark.usefixtures("empty_cache")
def test_a_device_that_computes_wrongly_is_passed_over_aloud(
    device_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """GPUs take the FP16 graph, the CPU the one in FP32: only the first is damaged."""
    pytest.importorskip("onnx", reason="onnx is not installed: it damages the graph")
    graph = open_bundle().graph(prefer=("fp16",))
    assert graph is not None
    damaged = {graph.path: darkened(open_bundle().read(graph.path))}
    folder = changed_bundle(tmp_path / "bundle", damaged, engines=())
    with Deblurrer.load(folder) as deblurrer:
        assert deblurrer.backend.name not in DEVICE_BACKENDS
        told = next(told for told in deblurrer.passed_over if told.startswith(f"{device_name}: "))
    assert "self-test" in told
    assert any(record.levelno == logging.ERROR and device_name in record.message for record in caplog.records)


def darkened(graph: bytes) -> bytes:
    """The graph with its picture clipped at half of white."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(graph)
    clip = next(node for node in reversed(model.graph.node) if node.op_type == "Clip")
    for tensor in model.graph.initializer:
        if tensor.name == clip.input[2]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 2, tensor.name))
    return model.SerializeToString()


def written(path: Path) -> Path:
    Image.fromarray(blurred_picture(96, 128)).save(path)
    return path


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]
