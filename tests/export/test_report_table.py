"""Reports on the screen: what a row tells, how wide and how long the table is, names that hold anything."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from rich.console import Console
from tests.export import reports
from tests.export.reports import check

from msan_export.acceptance.thresholds import Threshold
from msan_export.acceptance.verdict import Check, Interval, ParityReport
from msan_export.report.summary import change_words, difference_words, psnr_words, rows_of
from msan_export.report.table import parity_notes, parity_table

BOUND = reports.BOUNDS.uint8
FINE = reports.BOUNDS.float_fp32
SHARE = Threshold(max_difference=3 / 255, psnr_db=50, peak=1)


def printed(report: ParityReport, width: int = 78) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(parity_table(report))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def report_of(*checks: Check) -> ParityReport:
    return ParityReport(settings=reports.settings(), checks=checks)


@pytest.mark.parametrize("make", reports.ALL.values(), ids=reports.ALL.keys())
def test_a_table_is_78_columns_wide_and_no_wider(make: Callable[[], ParityReport]) -> None:
    report = make()
    lines = printed(report, 200).splitlines()[1:]  # the names in the first line may be long
    assert lines == printed(report, 78).splitlines()[-len(lines) :]
    assert max(map(cell_len, lines)) <= 78


def test_hundreds_of_checks_fit_on_two_screens() -> None:
    report = reports.large(8)
    assert len(report.checks) > 280
    assert len(printed(report).splitlines()) <= 60


def test_a_row_is_the_worst_of_its_pictures() -> None:
    figures = [(1.0, 73.0), (2.0, 81.0), (0.0, math.inf)]
    text = printed(report_of(*(check("pictures", "a.onnx", "uint8", one, case=str(one)) for one in figures)))
    (row,) = (line for line in text.splitlines() if "uint8" in line)
    assert row.split() == ["a.onnx", "uint8", "3", "2", "≤", "3", "73.0", "≥", "50", "pass"]


@pytest.mark.parametrize(("passed", "word"), [(True, "pass"), (False, "FAIL"), (None, "not run")])
def test_a_row_without_figures_says_its_verdict(passed: bool | None, word: str) -> None:
    text = printed(report_of(check("files", "a.onnx", "hash", passed=passed)))
    assert next(line for line in text.splitlines() if "hash" in line).endswith(word)


def test_one_failure_among_many_fails_the_row_and_leaves_what_was_not_run_apart() -> None:
    checks = [
        *(check("pictures", "a.onnx", "uint8", (1.0, 70.0), case=str(number)) for number in range(5)),
        check("pictures", "a.onnx", "uint8", (4.0, 70.0), case="5"),
        check("pictures", "a.onnx", "uint8", passed=None, case="6", detail="too large"),
    ]
    rows = rows_of(checks)
    assert [(row.passed, row.pictures) for row in rows] == [(False, 6), (None, 1)]
    assert rows[0].worst.case == "5"
    assert parity_notes(report_of(*checks)) == [
        "FAIL: a.onnx, uint8: 1 of 6 out of bounds, worst 5: 4 > 3 levels, 70.0 ≥ 50 dB",
        "not run: a.onnx, uint8: 6; too large",
    ]


def test_not_a_number_is_worse_than_any_number() -> None:
    checks = [
        check("pictures", "a.onnx", "uint8", (255.0, 3.0), case="black"),
        check("pictures", "a.onnx", "uint8", (math.nan, math.nan), case="nan", detail="holds NaN or infinity"),
    ]
    assert rows_of(checks)[0].worst.case == "nan"
    assert "NaN, not ≤ 3" in printed(report_of(*checks))
    (note,) = parity_notes(report_of(*checks))
    assert note.endswith(
        "2 of 2 out of bounds, worst nan: NaN, not ≤ 3 levels, NaN, not ≥ 50 dB; holds NaN or infinity"
    )


def test_figures_of_other_bounds_are_measured_by_their_own() -> None:
    quantized = reports.BOUNDS.quantized
    checks = [
        check("pictures", "a.onnx", "uint8", (40.0, 45.0), quantized, case="loose"),
        check("pictures", "a.onnx", "uint8", (2.9, 50.5), case="tight"),
    ]
    (row,) = rows_of(checks)
    assert row.largest_difference is checks[1]
    assert row.lowest_psnr is checks[1]


@pytest.mark.parametrize(
    ("value", "bound", "words"),
    [
        (0.0, BOUND, "0 ≤ 3"),
        (3.0, BOUND, "3 ≤ 3"),
        (3.0004, BOUND, "3.0004 > 3"),
        (255.0, BOUND, "255 > 3"),
        (math.inf, BOUND, "inf > 3"),
        (math.nan, BOUND, "NaN, not ≤ 3"),
        (2.384e-07, FINE, "2.4e-07 ≤ 1e-04"),
        (0.001, SHARE, "0.001 ≤ 0.0118"),
        (0.01178, SHARE, "0.012 > 0.011764705882352941"),
        (0.02, SHARE, "0.02 > 0.0118"),
        (1.00001e-4, FINE, "0.000100001 > 1e-04"),
    ],
)
def test_a_difference_beside_its_bound_never_looks_the_other_way(value: float, bound: Threshold, words: str) -> None:
    assert difference_words(value, bound) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (73.08, "73.1 ≥ 50"),
        (50.0, "50.0 ≥ 50"),
        (49.9996, "49.9996 < 50"),
        (math.inf, "∞ ≥ 50"),
        (math.nan, "NaN, not ≥ 50"),
        (-math.inf, "-inf < 50"),
    ],
)
def test_a_psnr_beside_its_bound_never_looks_the_other_way(value: float, words: str) -> None:
    assert psnr_words(value, BOUND) == words


def test_a_change_is_told_with_its_interval_where_there_is_one() -> None:
    assert change_words(Interval(mean=-0.003, low=-0.005, high=-0.001)) == "−0.003 (−0.005 to −0.001)"
    assert change_words(Interval(mean=0.01, low=math.nan, high=math.nan)) == "+0.010"


def test_pairs_are_rows_of_before_and_after_and_not_told_twice() -> None:
    report = reports.paired()
    section = printed(report).partition("Pairs\n")[2].partition("Steadiness")[0]
    assert "30.30 → 30.30" in section
    assert section.count("≥ −0.02") == len(report.pairs)
    assert section.count("pass") == 2
    assert section.count("FAIL") == 1
    assert "pairs" not in section


def test_pairs_that_could_not_be_scored_are_told() -> None:
    report = reports.paired()
    lost = check("pairs", "backend ort-cpu", "pairs", passed=False, detail="out of memory")
    text = printed(ParityReport(settings=report.settings, checks=(*report.checks, lost), pairs=report.pairs))
    assert text.partition("Pairs\n")[2].partition("Steadiness")[0].count("FAIL") == 2


def test_a_reason_does_not_repeat_its_subject() -> None:
    gone = check("pictures", "backend rtx", "uint8", passed=None, detail="backend rtx: no NVIDIA driver")
    assert parity_notes(report_of(gone)) == ["not run: backend rtx, uint8: no NVIDIA driver"]


def test_sections_come_in_their_order_and_only_where_there_is_something() -> None:
    lines = printed(reports.passing()).splitlines()
    titles = [
        line for line in lines if line in ("Files", "Types", "Inside the network", "Pictures", "Pairs", "Steadiness")
    ]
    assert titles == ["Files", "Types", "Inside the network", "Pictures", "Steadiness"]


def test_names_command_no_terminal_and_turn_no_line() -> None:
    report = reports.hostile()
    shown = printed(report) + "".join(parity_notes(report))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\udcff" not in shown
    assert "\\x1b[31m" in shown.replace("\n", "").replace(" ", "")
