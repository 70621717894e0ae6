"""What deblurs in an evaluation: how a name is understood, and that each kind deblurs as its own door does."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from msan.checkpoint import Checkpoint, find_checkpoint, network_from_checkpoint
from msan.data.readers import DatasetError
from msan.evaluation.methods import deblur_with_network, kind_of, open_method
from msan.evaluation.onnx_file import OnnxFileError, open_onnx_file
from msan.evaluation.sets import MeasuredPair, find_evaluation_sets
from msan_runtime import Deblurrer
from msan_runtime.attention import Attention
from msan_runtime.backends.openvino import OpenVinoName, unavailable
from msan_runtime.bundle import open_bundle, shipped_bundles
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME, PictureArray
from msan_runtime.errors import BackendError, MsanError

BUNDLE = shipped_bundles()["msan-s"]
GRAPH = BUNDLE / "msan-s.fp32.onnx"


def noise(height: int, width: int, seed: int = 0) -> PictureArray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def pair(picture: PictureArray) -> MeasuredPair:
    return MeasuredPair(name="a", file=Path("a.png"), blurred=picture, sharp=picture)


@pytest.fixture
def inverter(tmp_path: Path) -> Callable[..., Path]:
    """A maker of ONNX files of the image contract whose network gives 255 - x: that shows that it ran."""

    def make(io: str = "uint8", *, contract: str | None = "1", white: float = 1.0) -> Path:
        kind = TensorProto.UINT8 if io == "uint8" else TensorProto.FLOAT
        shape = ["n", "h", "w", 3]
        level = np.array(255, np.uint8) if io == "uint8" else np.array(white, np.float32)
        graph = helper.make_graph(
            [helper.make_node("Sub", ["white", INPUT_NAME], [OUTPUT_NAME])],
            "inverter",
            [helper.make_tensor_value_info(INPUT_NAME, kind, shape)],
            [helper.make_tensor_value_info(OUTPUT_NAME, kind, shape)],
            [onnx.numpy_helper.from_array(level, "white")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        if contract is not None:
            helper.set_model_props(model, {"msan.io": io, "msan.contract_version": contract})
        path = tmp_path / f"{io}.onnx"
        onnx.save(model, path)
        return path

    return make


def test_a_name_is_understood_by_what_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    Image.fromarray(noise(8, 8)).save(tmp_path / "out" / "a.png")
    (tmp_path / "net.pth").touch()
    assert kind_of("out") == "results"
    assert kind_of(str(BUNDLE)) == "bundle"
    assert kind_of("net.pth") == kind_of("msan-s") == kind_of("msan-s", "torch-cpu") == "checkpoint"
    assert kind_of("msan-s", "ort-cpu") == "bundle"
    assert kind_of("missing.onnx") == "onnx"
    with pytest.raises(MsanError, match="no checkpoint, ONNX file, bundle or folder of pictures at missing"):
        kind_of("missing.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty holds neither a bundle"):
        kind_of("empty")


def test_a_checkpoint_runs_in_pytorch(tiny: Checkpoint) -> None:
    picture = noise(21, 30)
    with open_method(str(tiny.path), [], backend="torch-cpu") as method:
        deblurred = method.deblur(pair(picture))
        assert (method.kind, method.backend, method.tile_area_px) == ("checkpoint", "torch-cpu", None)
        assert method.sha256 == hashlib.sha256(tiny.path.read_bytes()).hexdigest()
        assert method.size_bytes == tiny.path.stat().st_size
        assert method.timed
    np.testing.assert_array_equal(deblurred, deblur_with_network(network_from_checkpoint(tiny), picture))
    assert np.abs(deblurred.astype(int) - picture).max() > 3


def test_a_checkpoint_runs_with_windows_if_asked(tiny: Checkpoint) -> None:
    picture = noise(100, 70)
    network = network_from_checkpoint(tiny, Attention(window_px=64))
    with (
        open_method(str(tiny.path), [], attention="window:64") as windowed,
        open_method(str(tiny.path), [], attention="global") as whole,
    ):
        np.testing.assert_array_equal(windowed.deblur(pair(picture)), deblur_with_network(network, picture))
        assert (windowed.deblur(pair(picture)) != whole.deblur(pair(picture))).any()
        assert (windowed.attention, whole.attention) == ("window:64", "global")
    for asked in ("window", None):
        with open_method("msan-s", [], attention=asked) as method:
            assert method.attention == "window:384"


@pytest.mark.parametrize("model", ["msan-s", str(GRAPH), str(BUNDLE)])
def test_only_a_checkpoints_attention_can_be_chosen(model: str) -> None:
    with (
        pytest.raises(MsanError, match=r"its attention is fixed.*--attention window:64"),
        open_method(model, [], backend="ort-cpu", attention="window:64"),
    ):
        pass
    with open_method(model, [], backend="ort-cpu") as method:
        assert method.attention == open_bundle(BUNDLE).manifest.attention


@pytest.mark.parametrize("backend", ["openvino", "openvino-bf16"])
def test_a_bundle_runs_on_openvino_too(backend: OpenVinoName) -> None:
    if unavailable(backend):
        pytest.skip(f"no {backend} here")
    with open_method("msan-s", [], backend=backend) as method:
        assert method.backend == backend
        assert method.size_bytes == GRAPH.stat().st_size


@pytest.mark.parametrize("model", ["msan-s", str(BUNDLE)], ids=["name", "folder"])
def test_a_bundle_runs_in_the_runtime(model: str) -> None:
    picture = noise(21, 30)
    with open_method(model, [], backend="ort-cpu") as method, Deblurrer.load("msan-s", "ort-cpu") as deblurrer:
        np.testing.assert_array_equal(method.deblur(pair(picture)), deblurrer.deblur(picture))
        assert (method.kind, method.backend, method.label) == ("bundle", "ort-cpu", "msan-s")
        assert method.tile_area_px == deblurrer.backend.limits.area_px
    assert method.size_bytes == GRAPH.stat().st_size
    assert method.sha256 == hashlib.sha256((BUNDLE / "manifest.json").read_bytes()).hexdigest()


def test_an_exported_file_runs_as_in_its_bundle() -> None:
    picture = noise(21, 30)
    with open_method(str(GRAPH), [], backend="ort-cpu") as method, Deblurrer.load("msan-s", "ort-cpu") as deblurrer:
        np.testing.assert_array_equal(method.deblur(pair(picture)), deblurrer.deblur(picture))
    assert (method.kind, method.label, method.size_bytes) == ("onnx", GRAPH.name, GRAPH.stat().st_size)
    assert method.sha256 == hashlib.sha256(GRAPH.read_bytes()).hexdigest()


def test_the_shipped_checkpoint_and_its_bundle_agree() -> None:
    picture = np.array(Image.fromarray(noise(6, 8)).resize((40, 30), Image.Resampling.BICUBIC))
    with open_method("msan-s", [], backend="torch-cpu") as torch, open_method("msan-s", [], backend="ort-cpu") as ort:
        difference = torch.deblur(pair(picture)).astype(int) - ort.deblur(pair(picture))
    assert np.abs(difference).max() <= 1
    assert torch.sha256 == hashlib.sha256(find_checkpoint("msan-s").read_bytes()).hexdigest()


@pytest.mark.parametrize("io", ["uint8", "float32"])
@pytest.mark.parametrize("size", [(16, 24), (9, 13), (700, 800)])
def test_an_onnx_file_of_either_contract_takes_any_size(
    io: str, size: tuple[int, int], inverter: Callable[..., Path]
) -> None:
    """700×800 is over the runtime's tile."""
    picture = noise(*size)
    with open_onnx_file(inverter(io), "ort-cpu") as deblurrer:
        np.testing.assert_array_equal(deblurrer.deblur(picture), 255 - picture)


def test_float_pictures_are_rounded(inverter: Callable[..., Path]) -> None:
    """With a white of 0.5 the network gives 127.5 - x."""
    picture = np.arange(127, dtype=np.uint8)[:120].reshape(5, 8, 3)
    with open_onnx_file(inverter("float32", white=0.5), "ort-cpu") as deblurrer:
        deblurred = deblurrer.deblur(picture)
    assert np.abs(deblurred - (127.5 - picture)).max() <= 0.5


def test_without_cuda_an_onnx_file_says_why_it_runs_on_the_cpu(inverter: Callable[..., Path]) -> None:
    with open_method(str(inverter()), []) as method:
        assert method.backend in ("ort-cuda", "ort-cpu")
        if method.backend == "ort-cpu":
            assert len(method.notes) == 1
            assert method.notes[0].startswith("running on ort-cpu, since ort-cuda: this onnxruntime has no CUDA")


def test_foreign_and_damaged_onnx_files_are_named(inverter: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(OnnxFileError, match=r"uint8\.onnx was not made by"):
        open_onnx_file(inverter(contract=None), "ort-cpu")
    with pytest.raises(OnnxFileError, match=r"image contract 99, not 1"):
        open_onnx_file(inverter(contract="99"), "ort-cpu")
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(OnnxFileError, match=r"broken\.onnx cannot be used"):
        open_onnx_file(tmp_path / "broken.onnx", "ort-cpu")
    with pytest.raises(OnnxFileError, match=r"cannot read .*gone\.onnx"):
        open_onnx_file(tmp_path / "gone.onnx", "ort-cpu")


def test_a_backend_that_does_not_run_the_model_is_refused(
    tiny: Checkpoint, inverter: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    Image.fromarray(noise(8, 8)).save(out / "a.png")
    cases = [
        (str(tiny.path), "ort-cpu", "is a checkpoint"),
        (str(inverter()), "torch-cpu", "an ONNX file runs on"),
        (str(inverter()), "rtx", "an ONNX file runs on"),
        (str(BUNDLE), "torch-cpu", "is a bundle"),
        (str(BUNDLE), "fast", "no backend 'fast'"),
        (str(out), "ort-cpu", "is a folder of pictures"),
    ]
    for model, backend, words in cases:
        with pytest.raises(BackendError, match=words), open_method(model, [], backend=backend):
            pass


def test_results_are_read_from_their_folder(tmp_path: Path) -> None:
    for name, seed in (("input", 1), ("target", 2), ("out", 3)):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.fromarray(noise(9, 11, seed)).save(tmp_path / "set" / name / "a.png")
    sets = find_evaluation_sets([tmp_path / "set"])
    (one,) = sets[0].pairs()
    with open_method(str(tmp_path / "set" / "out"), sets) as method:
        np.testing.assert_array_equal(method.deblur(one), noise(9, 11, 3))
        assert (method.sha256, method.size_bytes, method.backend, method.timed) == (None, None, None, False)
        Image.fromarray(noise(9, 10)).save(tmp_path / "set" / "out" / "a.png")
        with pytest.raises(DatasetError, match=r"out/a\.png is 9×10 px, but .*input/a\.png is to be 9×11 px"):
            method.deblur(one)


def test_a_result_never_stands_for_two_sets(tmp_path: Path) -> None:
    """As RealBlur-J and -R, whose pictures have the same names."""
    for name in ("one", "two"):
        for folder in ("input", "target"):
            (tmp_path / name / folder).mkdir(parents=True)
            Image.fromarray(noise(9, 11)).save(tmp_path / name / folder / "a.png")
    out = tmp_path / "out"
    out.mkdir()
    Image.fromarray(noise(9, 11)).save(out / "a.png")
    sets = find_evaluation_sets([tmp_path / "one", tmp_path / "two"])
    words = re.escape(str(out / "two"))
    with (
        pytest.raises(DatasetError, match=f"would be the result for several sets.*{words}"),
        open_method(str(out), sets),
    ):
        pass
    for name in ("one", "two"):
        (out / name).mkdir()
        shutil.copy(out / "a.png", out / name / "a.png")
    with open_method(str(out), sets) as method:
        (one,) = sets[1].pairs()
        np.testing.assert_array_equal(method.deblur(one), noise(9, 11))
