"""Two bundles side by side: what differs is found, and nothing else; pictures, times, the page, and the command."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import typer
from onnx import numpy_helper
from rich.console import Console
from tests.export import reports
from tests.export.pages import Page
from tests.export.reports import HOSTILE
from typer.testing import CliRunner

import msan_export
from msan_export import comparison
from msan_export.acceptance.verdict import Case
from msan_export.bundle_facts import PARITY_NAME, facts_of
from msan_export.cli import register
from msan_export.comparison import BundleComparison, compare_bundles
from msan_export.report.comparison import comparison_html, comparison_json, comparison_table
from msan_export.report.document import parity_json
from msan_runtime.bench.timing import Latency
from msan_runtime.bundle import Bundle, open_bundle, shipped_bundles
from msan_runtime.errors import BackendError, BundleError, MsanError
from msan_runtime.manifest import Manifest, describe_file, load_manifest, save_manifest

SCHEMA = json.loads((Path(msan_export.__file__).parent / "schemas" / "bundle-comparison-1.schema.json").read_bytes())
Change = Callable[[Manifest], Manifest]


def small(name: str = "square", side_px: int = 64) -> Case:
    return Case(
        name=f"{name} {side_px}×{side_px}", picture=np.ascontiguousarray(reports.sample(name)[:side_px, :side_px])
    )


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(shipped_bundles()["msan-s"], folder))


def resealed(folder: Path, change: Change = lambda manifest: manifest) -> Path:
    """The bundle with ``change`` made to its manifest, and the hashes of its files as they are now."""
    manifest = load_manifest(folder)
    files = tuple(describe_file(folder, file.path) for file in manifest.files)
    save_manifest(change(replace(manifest, files=files)), folder)
    return folder


def brighten(path: Path, levels: float) -> None:
    """Let a graph give pictures that are ``levels`` of 255 brighter."""
    model = onnx.load(path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "network.edcoder2.layer11.bias")
    values = numpy_helper.to_array(bias) + np.float32(levels / 255)
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, path)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle, two levels brighter, made with another torch and another budget, and without its engine."""
    folder = copied(tmp_path_factory.mktemp("bundles") / "other")
    brighten(folder / "msan-s.fp32.onnx", 2)

    def change(manifest: Manifest) -> Manifest:
        return replace(
            manifest,
            self_test=None,
            engines=(),
            versions={**manifest.versions, "torch": "2.12.0"},
            recipe={**manifest.recipe, "budget": "0.2dB"},
        )

    return resealed(folder, change)


@pytest.fixture(scope="module")
def found(other: Path) -> BundleComparison:
    cases = [small(), small("odd", 40)]
    return compare_bundles(open_bundle("msan-s"), open_bundle(other), cases, backend="ort-cpu", rounds=2)


def printed(comparison: BundleComparison) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(comparison_table(comparison))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_differs_is_found_and_nothing_else(found: BundleComparison) -> None:
    different = {(fact.group, fact.name): (fact.a, fact.b) for fact in found.different}
    engine = [key for key in different if key[0] == "engines"]
    assert len(engine) == 8
    assert all(different.pop(key)[1] is None for key in engine)
    assert different.pop(("recipe", "budget")) == ("0.1dB", "0.2dB")
    assert different.pop(("versions", "torch"))[1] == "2.12.0"
    first, second = different.pop(("graphs", "fp32 graph, uint8: SHA-256"))
    assert first is not None
    assert second is not None
    assert len(first) == len(second) == 64
    assert different == {}
    assert {"network", "origin", "recipe", "versions", "graphs", "verification"} == {fact.group for fact in found.same}


def test_pictures_are_told_apart_as_far_as_they_are(found: BundleComparison) -> None:
    assert [one.case for one in sorted(found.pictures, key=lambda one: one.case)] == ["odd 40×40", "square 64×64"]
    for one in found.pictures:
        assert 2 <= one.max_difference <= 12
        assert 35 < one.psnr_db < 48
        assert one.blurred.shape == one.a.shape == one.b.shape
        # Each sub-network hands its brightness on.
        assert 1.5 < float(np.mean(one.b.astype(float) - one.a)) < 4
        apart = float(np.abs(one.b.astype(float) - one.a).max())
        assert one.max_difference == apart
    assert [one.psnr_db for one in found.pictures] == sorted(one.psnr_db for one in found.pictures)


def test_times_are_of_the_largest_picture(found: BundleComparison) -> None:
    timing = found.timing
    assert (timing.height, timing.width, timing.rounds) == (64, 64, 2)
    assert timing.a_ms > 0
    assert timing.b_ms > 0
    assert 0.05 < timing.ratio < 20


def test_the_ratio_is_of_b_over_a_round_by_round(monkeypatch: pytest.MonkeyPatch, other: Path) -> None:
    def timed(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Latency]:
        assert (list(calls), rounds) == (["a", "b"], 3)
        assert all(isinstance(call(), np.ndarray) for call in calls.values())
        return {"a": Latency(times_ms=(10.0, 20.0, 90.0)), "b": Latency(times_ms=(20.0, 60.0, 90.0))}

    monkeypatch.setattr(comparison, "interleaved", timed)
    case = small(side_px=24)
    found = compare_bundles(open_bundle("msan-s"), open_bundle(other), [case], backend="ort-cpu", rounds=3)
    assert (found.timing.a_ms, found.timing.b_ms, found.timing.ratio) == (20.0, 60.0, 2.0)


def test_a_bundle_is_the_same_as_itself(tmp_path: Path) -> None:
    bundle = open_bundle("msan-s")
    found = compare_bundles(bundle, open_bundle(copied(tmp_path / "msan-s")), [small()], backend="ort-cpu", rounds=1)
    assert found.different == ()
    assert [one.psnr_db for one in found.pictures] == [math.inf]
    assert found.a.name == "models/msan-s"
    assert found.b.name == f"{tmp_path.name}/msan-s"
    assert found.a.manifest_sha256 == found.b.manifest_sha256
    text = printed(found)
    assert "Nothing that is told of them differs." in text
    assert "The same: network, origin, recipe, versions, graphs, engines, verification." in text
    assert "Nothing that is told of them differs." in Page(comparison_html(found)).text


def with_report(folder: Path, text: str) -> Bundle:
    (folder / PARITY_NAME).write_text(text, encoding="utf-8")
    return open_bundle(resealed(folder))


def told(bundle: Bundle) -> dict[str, str]:
    return {name: value for (group, name), value in facts_of(bundle).items() if group == "verification"}


def first_schema(psnrs: tuple[float | str, ...] = (73.25, "inf", 80.0)) -> str:
    """A report as bundles held it before there were settings, pairs and sections."""
    threshold = {"max_difference": 3.0, "psnr_db": 50.0, "peak": 255.0}
    empty = {"case": "", "max_difference": None, "psnr_db": None, "threshold": None, "detail": ""}
    checks: list[dict[str, object]] = [
        {**empty, "subject": "manifest", "quantity": "origin", "passed": True},
        {**empty, "subject": "msan-s.rtx.engine", "quantity": "uint8", "passed": None, "detail": "no NVIDIA driver"},
    ]
    for case, levels, psnr_db in zip(("a.jpg", "b.jpg", "c.jpg"), (1.0, 0.0, 2.0), psnrs, strict=True):
        one = {"max_difference": levels, "psnr_db": psnr_db, "threshold": threshold, "case": case, "detail": ""}
        checks.append({**one, "subject": "msan-s.fp16.onnx", "quantity": "uint8", "passed": True})
    body = {"schema_version": 1, "passed": True, "bundle": "msan-s", "checkpoint_sha256": "c4" * 32, "checks": checks}
    return json.dumps(body)


def test_figures_of_both_schemas_are_read(tmp_path: Path) -> None:
    assert told(with_report(copied(tmp_path / "a"), first_schema())) == {
        "verdict": "pass",
        "checks": "4 passed, 1 not run",
        "fp16 graph, uint8: uint8": "difference up to 2, PSNR from 73.2 dB",
    }
    report = reports.paired()
    names: dict[str, str] = dict(
        zip(reports.GRAPHS, ("msan-s.fp16.onnx", "msan-s.fp32.onnx", "msan-s.fp32.float.onnx"), strict=True)
    )
    checks = tuple(replace(one, subject=names.get(one.subject, one.subject)) for one in report.checks)
    second = told(with_report(copied(tmp_path / "b"), parity_json(replace(report, checks=checks))))
    assert second["verdict"] == "fail"
    assert second["checks"] == "39 passed, 1 failed"
    assert second["fp16 graph, uint8: uint8"] == "difference up to 1, PSNR from 73.0 dB"
    assert second["fp32 graph, uint8: float"] == "difference up to 2.4e-07, PSNR from 155.2 dB"
    assert second["GoPro, backend openvino-bf16: mean change of PSNR"] == "-0.0425 dB"


def test_not_a_number_is_the_worst_figure(tmp_path: Path) -> None:
    facts = told(with_report(copied(tmp_path / "b"), parity_json(reports.failing())))
    assert facts["backend openvino: uint8"] == "difference up to nan, PSNR from nan dB"
    assert facts["checks"] == "37 passed, 3 failed, 1 not run"
    mixed = told(with_report(copied(tmp_path / "c"), first_schema((80.0, "nan", 73.0))))
    assert mixed["fp16 graph, uint8: uint8"] == "difference up to 2, PSNR from nan dB"


def test_a_report_of_another_schema_is_named(tmp_path: Path) -> None:
    facts = told(with_report(copied(tmp_path / "b"), json.dumps({"schema_version": 3})))
    assert facts == {"report": "schema 3, which this msan does not read"}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema_version": 2, "checks": 1, "passed": true}', "[" * 100_000])
def test_a_report_that_is_none_is_a_message(tmp_path: Path, text: str) -> None:
    with pytest.raises(BundleError, match=r"parity\.json is no report that this msan reads"):
        told(with_report(copied(tmp_path / "b"), text))


def test_a_report_that_was_changed_is_refused(tmp_path: Path) -> None:
    bundle = open_bundle(copied(tmp_path / "b"))
    (bundle.folder / PARITY_NAME).write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match="was changed since the bundle was made"):
        facts_of(bundle)


def test_a_bundle_without_a_report_has_no_figures(tmp_path: Path) -> None:
    folder = copied(tmp_path / "b")
    files = tuple(file for file in load_manifest(folder).files if file.path != PARITY_NAME)
    save_manifest(replace(load_manifest(folder), files=files), folder)
    assert told(open_bundle(folder)) == {}


def test_what_cannot_be_compared_is_a_message(tmp_path: Path) -> None:
    bundle = open_bundle("msan-s")
    with pytest.raises(BundleError, match="no picture"):
        compare_bundles(bundle, bundle, [])
    with pytest.raises(BackendError, match="no backend 'gpu'"):
        compare_bundles(bundle, bundle, [small()], backend="gpu")
    folder = copied(tmp_path / "float")
    graphs = tuple(graph for graph in load_manifest(folder).graphs if graph.io == "float32")
    resealed(folder, lambda manifest: replace(manifest, graphs=graphs, self_test=None))
    with pytest.raises(BackendError, match=r"does not run on ort-cpu, as .*msan-s does: .*--backend"):
        compare_bundles(bundle, open_bundle(folder), [small()], backend="ort-cpu")


def test_the_table_is_78_columns_wide_and_short(found: BundleComparison) -> None:
    text = printed(found)
    lines = [line.rstrip() for line in text.splitlines()]
    table = [line for line in lines if not line.startswith(("The same:", "Time for"))]
    assert max(map(len, table)) <= 78
    assert len(lines) < 40
    sha256 = load_manifest(shipped_bundles()["msan-s"]).file("msan-s.fp32.onnx").sha256
    assert f"{sha256[:12]}…" in text
    assert sha256 not in text
    recipe = [fact for fact in found.facts if fact.group == "recipe"]
    assert f"{len(recipe) - 1} of {len(recipe)} of recipe" in " ".join(text.split())
    assert f"B takes {found.timing.ratio:.2f} times as long as A." in text
    assert lines[:2] == ["A: msan-s", "B: other"]
    assert "Run were A's FP32 file and B's FP32 file, no others of theirs." in lines


def test_the_json_follows_the_published_schema(found: BundleComparison) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    body: dict[str, Any] = json.loads(comparison_json(found))
    jsonschema.validate(body, SCHEMA)
    assert len(body["facts"]) == len(found.facts)
    assert sum(not fact["same"] for fact in body["facts"]) == len(found.different)
    made_up = json.loads(comparison_json(reports.compared()))
    assert [picture["psnr_db"] for picture in made_up["pictures"]] == [61.5, "inf"]
    for key in ("more", "facts"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**body, key: 1}, SCHEMA)


def test_the_page_shows_both_pictures_and_what_differs() -> None:
    page = Page(comparison_html(reports.compared()))
    assert page.open == []
    assert page.text.startswith("msan and other: two bundles compared")
    assert "Different: 4 things. The same: 1 thing." in page.text
    assert "1 of 2 pictures are equal to the bit." in page.text
    assert "1.7.1.116 none" in page.text
    assert [option["value"] for option in page.all("option")][:4] == ["input", "a", "b", "difference"]
    assert len([1 for _, attributes in page.elements if "data-viewer" in attributes]) == 2
    assert not [1 for _, attributes in page.elements if "data-viewer" in attributes and not attributes["id"]]
    assert "B takes 0.50 times as long as A. A figure of this machine at that moment, not a verdict." in page.text


def test_the_page_keeps_within_its_budget_and_shows_as_many_as_asked_for(found: BundleComparison) -> None:
    whole = comparison_html(found)
    assert len(whole.encode()) < 300_000
    fewer = Page(comparison_html(found, exhibits=1))
    assert len([1 for _, attributes in fewer.elements if "data-viewer" in attributes]) == 1
    assert "odd 40×40" in fewer.text


def test_names_of_bundles_are_text_whatever_they_hold() -> None:
    comparison = reports.compared(HOSTILE)
    page = Page(comparison_html(comparison))
    assert len(page.all("script")) == 1
    assert page.open == []
    shown = HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")
    assert shown in page.text
    assert "\u202e" not in printed(comparison)
    assert "\x1b" not in printed(comparison)


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    made = typer.Typer()
    register(made)
    made.callback()(lambda: None)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one small picture."""
    from PIL import Image

    place = tmp_path / "pictures"
    place.mkdir()
    Image.fromarray(small().picture).save(place / "one.png")
    return place


def test_the_command_prints_and_writes_what_is_asked_for(
    app: typer.Typer, other: Path, folder: Path, tmp_path: Path
) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    command = ["report", "msan-s", str(other), "--pictures", str(folder), "--backend", "ort-cpu"]
    done = CliRunner().invoke(app, [*command, "-o", str(page), "--json", str(figures)])
    assert done.exit_code == 0, done.output
    assert "A: msan-s" in done.output
    assert "one.png 64×64" in done.output
    assert "times as long as A." in " ".join(done.output.split())
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    jsonschema.validate(json.loads(figures.read_bytes()), SCHEMA)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "page.html", "pictures"]


def test_the_command_writes_nothing_unasked(app: typer.Typer, folder: Path, tmp_path: Path) -> None:
    command = ["report", "msan-s", "msan-s", "--pictures", str(folder), "--backend", "ort-cpu"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["msan-s", "nowhere"], "no bundle at nowhere"),
        (["msan-s", "msan-s", "--pictures", "nowhere"], "no folder of pictures at nowhere"),
        (["msan-s", "msan-s", "--backend", "gpu"], "no backend 'gpu'"),
    ],
)
def test_bad_input_is_a_message(app: typer.Typer, arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["report", *arguments])
    assert isinstance(done.exception, MsanError)
    assert done.exception.exit_code == 2
    assert words in str(done.exception)


@pytest.mark.parametrize("option", ["-o", "--json"])
def test_a_file_that_cannot_be_written_is_a_message(
    app: typer.Typer, folder: Path, tmp_path: Path, option: str
) -> None:
    target = tmp_path / "missing" / "file"
    command = ["report", "msan-s", "msan-s", "--pictures", str(folder), "--backend", "ort-cpu", option, str(target)]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, MsanError)
    assert str(done.exception).startswith(f"cannot write to {target}: ")
    assert "\n" not in str(done.exception)
