"""Reports as JSON: the published schema, figures that JSON has no number for, names that are no text."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.export import reports

import msan_export
from msan_export.acceptance.verdict import SECTIONS, ParityReport
from msan_export.report.document import PARITY_SCHEMA_VERSION, parity_json

SCHEMA = json.loads((Path(msan_export.__file__).parent / "schemas" / "parity-2.schema.json").read_bytes())


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def body_of(report: ParityReport) -> dict[str, Any]:
    return json.loads(parity_json(report), parse_constant=refuse_constant)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema_version"] == {"const": PARITY_SCHEMA_VERSION}
    assert SCHEMA["$defs"]["check"]["properties"]["section"]["enum"] == list(SECTIONS)


@pytest.mark.parametrize("make", reports.ALL.values(), ids=reports.ALL.keys())
def test_reports_follow_the_published_schema(make: Callable[[], ParityReport]) -> None:
    report = make()
    body = body_of(report)
    jsonschema.validate(body, SCHEMA)
    assert body["passed"] is report.passed
    assert len(body["checks"]) == len(report.checks)
    assert len(body["pairs"]) == len(report.pairs)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("more",), 1),
        (("passed",), None),
        (("schema_version",), 1),
        (("settings", "more"), ""),
        (("settings", "checkpoint_sha256"), "c4"),
        (("settings", "thresholds", "uint8", "peak"), 2),
        (("settings", "thresholds", "steady_levels"), "inf"),
        (("checks", 0, "section"), "elsewhere"),
        (("checks", 0, "psnr_db"), "high"),
        (("pairs", 0, "change", "psnr_db", "low"), None),
        (("worst", 0, "given"), []),
    ],
)
def test_the_schema_refuses_anything_else(path: tuple[str | int, ...], value: object) -> None:
    body = body_of(reports.paired())
    jsonschema.validate(body, SCHEMA)
    place: Any = body
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body, SCHEMA)


def test_figures_that_are_no_numbers_are_strings() -> None:
    body = body_of(reports.failing())
    assert {"inf", "nan"} <= {check["psnr_db"] for check in body["checks"]}
    single = next(scores for scores in body_of(reports.paired())["pairs"] if len(scores["names"]) == 1)
    assert single["change"]["psnr_db"]["low"] == "nan"


def test_every_setting_and_bound_is_told() -> None:
    report = reports.passing()
    told = body_of(report)["settings"]
    assert set(told) == {field.name for field in dataclasses.fields(report.settings)}
    assert set(told["thresholds"]) == {field.name for field in dataclasses.fields(report.settings.thresholds)}
    assert told["thresholds"]["uint8"] == {"max_difference": 3.0, "psnr_db": 50.0, "peak": 255.0}
    assert told["machine"] == report.settings.machine


def test_worst_pictures_are_told_without_their_pixels() -> None:
    report = reports.failing()
    told = body_of(report)["worst"]
    assert [(one["case"], one["height_px"], one["width_px"]) for one in told] == [
        (exhibit.case, *exhibit.expected.shape[:2]) for exhibit in report.worst
    ]
    assert math.isclose(told[0]["psnr_db"], report.worst[0].psnr_db)
    assert len(parity_json(report)) < 50_000


def test_a_name_that_is_no_unicode_keeps_its_bytes() -> None:
    report = reports.hostile()
    text = parity_json(report)
    assert "name\\udcff" in text
    assert any(check["subject"].startswith("name\udcff") for check in json.loads(text.encode())["checks"])


def test_the_report_inside_a_bundle_has_no_hash_of_the_manifest_that_names_it() -> None:
    report = reports.passing()
    inside = dataclasses.replace(report, settings=dataclasses.replace(report.settings, manifest_sha256=None))
    body = body_of(inside)
    jsonschema.validate(body, SCHEMA)
    assert body["settings"]["manifest_sha256"] is None
