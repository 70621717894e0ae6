"""A report on the screen: a row for each subject and quantity, worst figures beside their bounds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from msan_export.acceptance.verdict import SECTIONS, Check, PairScores, ParityReport
from msan_export.report.plain import plain
from msan_export.report.summary import (
    SECTION_TITLES,
    Row,
    change_words,
    difference_words,
    psnr_words,
    rows_of,
    sentence,
    short_rows,
    unscored,
    verdict_word,
)

__all__ = ["parity_notes", "parity_table"]

# With a space after each but the last: 78.
COLUMNS = (("", 23), ("compared", 13), ("on", 3), ("difference", 15), ("PSNR dB", 12), ("", 7))
PAIR_COLUMNS = (("", 22), ("on", 3), ("PSNR dB", 13), ("change (95 %)", 19), ("bound", 9), ("", 7))


def parity_table(report: ParityReport) -> Group:
    """The sections of a report, each with its subjects and what was compared. 78 columns wide."""
    against = f"{report.bundle} against {report.settings.reference}"
    return Group(Text(plain(against), style="italic"), *_sections(report), Text(_legend(report)))


def parity_notes(report: ParityReport) -> list[str]:
    """A line for whatever failed, then for whatever was not run, with the reason."""
    rows = rows_of(report.checks)
    noted = [*(row for row in rows if row.passed is False), *(row for row in rows if row.passed is None)]
    return [plain(f"{verdict_word(row.passed)}: {sentence(row)}") for row in noted]


def _sections(report: ParityReport) -> Iterator[RenderableType]:
    rows = short_rows(unscored(report))
    for section in SECTIONS:
        mine = [row for row in rows if row.section == section]
        if mine:
            yield _table(SECTION_TITLES[section], mine)
        if section == "pairs" and report.pairs:
            yield _pairs_table("" if mine else SECTION_TITLES[section], report.pairs)


def _legend(report: ParityReport) -> str:
    fine = any(check.threshold is not None and check.threshold.peak == 1 for check in report.checks)
    more = "; inside the network and before rounding, of 1" if fine else ""
    return f"The worst figure of so many pictures (on), beside its bound.\nDifferences in levels of 255{more}."


def _new_table(title: str, columns: Iterable[tuple[str, int]]) -> Table:
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title=title or None,
        title_justify="left",
        title_style="bold",
    )
    for header, width in columns:
        table.add_column(header, width=width, overflow="fold")
    return table


def _table(title: str, rows: Sequence[Row]) -> Table:
    """Rows of one section, a subject's name on its first alone."""
    table = _new_table(title, COLUMNS)
    table.show_header = any(row.measured for row in rows)
    subject = None
    for row in rows:
        table.add_row(*_cells(row, told="" if row.subject == subject else row.subject))
        subject = row.subject
    return table


def _cells(row: Row, told: str) -> list[Text]:
    count = str(row.pictures) if row.pictures else ""
    figures = (_difference(row.largest_difference), _psnr(row.lowest_psnr))
    style = "" if row.passed else "bold red" if row.passed is False else "dim"
    cells = (told, row.quantity, count, *figures)
    return [*(Text(plain(cell)) for cell in cells), Text(verdict_word(row.passed), style=style)]


def _difference(check: Check | None) -> str:
    if check is None or check.max_difference is None or check.threshold is None:
        return ""
    return difference_words(check.max_difference, check.threshold)


def _psnr(check: Check | None) -> str:
    if check is None or check.psnr_db is None or check.threshold is None:
        return ""
    return psnr_words(check.psnr_db, check.threshold)


def _pairs_table(title: str, pairs: Iterable[PairScores]) -> Table:
    table = _new_table(title, PAIR_COLUMNS)
    for scores in pairs:
        table.add_row(*(Text(plain(cell)) for cell in _pair_cells(scores)))
    return table


def _pair_cells(scores: PairScores) -> tuple[str, ...]:
    before, after = (_mean(figures["psnr_db"]) for figures in (scores.before, scores.after))
    mean, _, interval = change_words(scores.change["psnr_db"]).partition(" ")
    return (
        f"{scores.data_set}: {scores.subject}",
        str(len(scores.names)),
        f"{before:.2f} → {after:.2f}",
        f"{mean} {interval}".strip(),
        f"≥ −{scores.loss_bound_db:g}",
        verdict_word(scores.passed),
    )


def _mean(figures: tuple[float, ...]) -> float:
    return sum(figures) / len(figures) if figures else float("nan")
