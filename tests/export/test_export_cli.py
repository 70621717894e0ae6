"""``msan export``, ``build``, ``verify`` and ``deploy``: what they write, their exit codes and their messages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from tests.export.conftest import Exporter
from tests.in_process import Command, Finished, in_process

from msan.checkpoint import Checkpoint


@pytest.fixture(autouse=True)
def export_once(remembered_export: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights are exported by several tests here."""
    monkeypatch.setattr("msan_export.onnx.onnx_from_checkpoint", remembered_export)


@pytest.fixture
def msan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs ``msan`` in this process."""
    with in_process(monkeypatch, capsys) as run:
        yield run


def check_refused(finished: Finished, code: int, words: str) -> None:
    """One error line with these words, and no traceback."""
    assert finished.code == code, finished.err
    lines = [line for line in finished.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, finished.err
    assert words in lines[0]
    assert "Traceback" not in finished.err


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_export_writes_a_graph_of_the_asked_form(msan: Command, tiny: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    finished = msan("export", tiny.path, "-o", path, "--precision", "fp32", "--io", "float32")
    assert finished.code == 0
    assert "fp32, float32 pictures, window:384 attention, opset 23" in finished.out
    assert onnx.load(path).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ([], "window:384"),
        (["--attention", "global"], "global"),
        (["--attention", "window"], "window:384"),
        (["--attention", "window:64"], "window:64"),
    ],
)
def test_export_with_windows_names_them(
    msan: Command, tiny: Checkpoint, tmp_path: Path, asked: list[str], named: str
) -> None:
    finished = msan("export", tiny.path, "-o", tmp_path / "net.onnx", *asked)
    assert finished.code == 0
    assert f"{named} attention" in finished.out
    metadata = {prop.key: prop.value for prop in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert metadata["msan.attention"] == named


@pytest.mark.parametrize("command", ["export", "deploy"])
def test_attention_that_does_not_exist_is_refused(
    msan: Command, tiny: Checkpoint, tmp_path: Path, command: str
) -> None:
    for asked, words in [("local", "global, window or window:SIZE"), ("window:100", "a multiple of 8")]:
        check_refused(msan(command, tiny.path, "-o", tmp_path / "new", "--attention", asked), 2, words)
    assert not list(tmp_path.iterdir())


def test_export_of_a_file_that_is_no_checkpoint_says_what_was_expected(msan: Command, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("no weights")
    finished = msan("export", tmp_path / "a.pth", "-o", tmp_path / "a.onnx")
    check_refused(finished, 2, "expected an MSAN state dict")
    assert not (tmp_path / "a.onnx").exists()


def test_export_to_a_place_that_is_not_there(msan: Command, tiny: Checkpoint, tmp_path: Path) -> None:
    check_refused(msan("export", tiny.path, "-o", tmp_path / "no" / "a.onnx"), 2, "cannot write to")


def test_build_lists_the_gpus(msan: Command) -> None:
    finished = msan("build", "--gpu", "list")
    assert finished.code == 0
    assert all(word in finished.out for word in ("rtx30", "sm_89", "rtx5090"))


def test_build_without_a_graph_says_what_to_give(msan: Command) -> None:
    check_refused(msan("build"), 2, "no ONNX file given")


def test_build_writes_an_engine_and_its_description(msan: Command, bundle: Path, tmp_path: Path) -> None:
    graph = next(bundle.glob("*.fp16.onnx"))
    finished = msan(
        "build", graph, "--gpu", "rtx4090", "-o", tmp_path / "engines", "--max", "512x768", "--opt", "256x256"
    )
    assert finished.code == 0
    assert "32 × convolution fp16" in finished.out
    entry = json.loads(next((tmp_path / "engines").glob("*.json")).read_text())
    assert entry["profile"] == {"min": [1, 8, 8], "opt": [1, 256, 256], "max": [1, 512, 768]}
    assert entry["compute_capabilities"] == ["8.9"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu", "rtx9000"], "no GPU named 'rtx9000'"),
        (["--max", "big"], "HEIGHTxWIDTH"),
        (["--max", "100x100", "--opt", "64x64"], "multiples of 8"),
        (["--max", "640x640", "--opt", "800x800"], "min <= opt <= max"),
        (["--flavour", "tensorrt-rtx", "--gpu", "h100"], "no sm_90"),
    ],
)
def test_build_refuses_what_cannot_be_built(msan: Command, bundle: Path, options: list[str], words: str) -> None:
    check_refused(msan("build", next(bundle.glob("*.fp16.onnx")), "-o", bundle / "e", *options), 2, words)


def test_build_fails_with_1_if_the_types_are_not_what_was_asked(msan: Command, bundle: Path, tmp_path: Path) -> None:
    finished = msan("build", next(bundle.glob("*.fp32.onnx")), "-o", tmp_path / "e", "--precision", "fp16")
    check_refused(finished, 1, "40 of 40 layers are not fp16")
    assert not (tmp_path / "e").exists()


def test_verify_passes_a_deployed_bundle(msan: Command, tiny: Checkpoint, bundle: Path) -> None:
    finished = msan("verify", tiny.path, bundle, "--quick")
    assert finished.code == 0
    assert "PASS" in finished.out
    assert json.loads(bundle.with_name("bundle.parity.json").read_text())["passed"] is True
    assert "PASS" in bundle.with_name("bundle.report.html").read_text()


def test_verify_fails_with_1_after_one_bit_of_a_graph_changed(msan: Command, tiny: Checkpoint, bundle: Path) -> None:
    path = next(bundle.glob("*.fp32.onnx"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)
    finished = msan("verify", tiny.path, bundle, "--quick")
    assert finished.code == 1
    assert "FAIL" in finished.out
    assert json.loads(bundle.with_name("bundle.parity.json").read_text())["passed"] is False


def test_verify_on_pictures_of_ones_own(msan: Command, tiny: Checkpoint, bundle: Path, tmp_path: Path) -> None:
    sample = Path(__file__).parents[2] / "export" / "msan_export" / "samples" / "odd.jpg"
    (tmp_path / "mine").mkdir()
    shutil.copy(sample, tmp_path / "mine" / "holiday.jpg")
    asked = ["--pictures", tmp_path / "mine", "--json", tmp_path / "p.json", "--quick"]
    finished = msan("verify", tiny.path, bundle, *asked)
    assert finished.code == 0
    cases = {check["case"] for check in json.loads((tmp_path / "p.json").read_text())["checks"] if check["case"]}
    assert cases == {"holiday.jpg 203×301", "1 picture", "1 × 64×64"}


def test_verify_on_pairs_with_a_stricter_bound(msan: Command, tiny: Checkpoint, bundle: Path, tmp_path: Path) -> None:
    sample = Path(__file__).parents[2] / "export" / "msan_export" / "samples" / "odd.jpg"
    for part in ("input", "target"):
        (tmp_path / "pairs" / part).mkdir(parents=True)
        for number in range(3):
            shutil.copy(sample, tmp_path / "pairs" / part / f"{number}.jpg")
    asked = ["--pairs", tmp_path / "pairs", "--limit", "2", "--quick", "--json", tmp_path / "p.json"]
    finished = msan("verify", tiny.path, bundle, *asked)
    assert finished.code == 0
    body = json.loads((tmp_path / "p.json").read_text())
    assert {len(scores["names"]) for scores in body["pairs"]} == {2}
    (tmp_path / "none.toml").write_text("[pairs_loss_db]\nfp16 = 0\nfp32 = 0\nbf16 = 0\n")
    finished = msan("verify", tiny.path, bundle, *asked, "--thresholds", tmp_path / "none.toml")
    assert finished.code == (0 if all(scores["change"]["psnr_db"]["low"] >= 0 for scores in body["pairs"]) else 1)


def test_verify_on_what_holds_no_pairs(msan: Command, tiny: Checkpoint, bundle: Path, tmp_path: Path) -> None:
    check_refused(msan("verify", tiny.path, bundle, "--pairs", tmp_path / "none"), 2, "none")


def test_verify_without_a_bundle(msan: Command, tiny: Checkpoint, tmp_path: Path) -> None:
    check_refused(msan("verify", tiny.path, tmp_path / "none"), 2, "no bundle at")


def test_deploy_writes_a_bundle_that_the_runtime_opens(msan: Command, tiny: Checkpoint, tmp_path: Path) -> None:
    from msan_runtime import Deblurrer

    finished = msan("deploy", tiny.path, "-o", tmp_path / "new", "--gpu", "sm_86", "--attention", "window:64")
    assert finished.code == 0
    assert "window:64 attention" in finished.out
    assert "msan deblur PICTURE" in finished.out
    with Deblurrer.load(tmp_path / "new", "ort-cpu") as deblurrer:
        assert deblurrer.bundle.manifest.provenance["checkpoint_sha256"] == tiny.sha256
        assert deblurrer.bundle.manifest.attention == "window:64"
        assert {graph.io for graph in deblurrer.bundle.manifest.graphs} == {"uint8", "float32"}
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_deploy_leaves_a_folder_that_is_no_bundle_alone(msan: Command, tiny: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    check_refused(msan("deploy", tiny.path, "-o", tmp_path / "mine"), 2, "not a bundle")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_deploy_of_an_unknown_gpu_leaves_nothing(msan: Command, tiny: Checkpoint, tmp_path: Path) -> None:
    check_refused(msan("deploy", tiny.path, "-o", tmp_path / "new", "--gpu", "gtx1"), 2, "no GPU named")
    assert not list(tmp_path.iterdir())


def test_export_never_replaces_the_checkpoint(msan: Command, tiny: Checkpoint) -> None:
    before = tiny.path.read_bytes()
    check_refused(msan("export", tiny.path, "-o", tiny.path), 2, "is the checkpoint itself")
    assert tiny.path.read_bytes() == before


def test_a_profile_too_small_for_fused_attention_is_refused_in_words(msan: Command, bundle: Path) -> None:
    finished = msan("build", next(bundle.glob("*.fp16.onnx")), "-o", bundle / "e", "--max", "192x192")
    check_refused(finished, 2, "--max 512x512 or larger")


def test_a_smaller_largest_tile_lowers_the_typical_one(msan: Command, bundle: Path, tmp_path: Path) -> None:
    finished = msan("build", next(bundle.glob("*.fp16.onnx")), "-o", tmp_path / "e", "--max", "512x512")
    assert finished.code == 0
    entry = json.loads(next((tmp_path / "e").glob("*.json")).read_text())
    assert entry["profile"]["opt"] == [1, 512, 512]


def test_a_shipped_bundle_is_verified_without_touching_the_installation(
    msan: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert msan("verify", "msan-s", "msan-s", "--quick").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["msan-s.parity.json", "msan-s.report.html"]
