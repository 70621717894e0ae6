"""Scores as tables, files and a sheet; published figures beside full test sets only."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from msan.data.readers import LayoutName, Pair, PairSet, Split
from msan.evaluation.evaluate import Evaluation, Metric, PictureScore, Scores, Skipped
from msan.evaluation.files import CSV_COLUMNS, save_csv, save_json
from msan.evaluation.methods import Method
from msan.evaluation.sets import BlurredPictures, EvaluationSet, MeasuredPair, PairedPictures
from msan.evaluation.sheet import (
    CELL_PX,
    GAP_PX,
    LINE_PX,
    MARGIN_PX,
    ROW_PX,
    TITLE_PX,
    Extremes,
    draw_sheet,
    save_sheet,
)
from msan.evaluation.tables import score_notes, score_tables
from msan_runtime.contract import PictureArray
from msan_runtime.errors import MsanError, PictureError

NETWORK = Method(
    label="net",
    source="run/net.pth",
    kind="checkpoint",
    deblur=lambda pair: pair.blurred,
    sha256="0" * 64,
    size_bytes=3_540_000,
    backend="torch-cpu",
    device="CPU, PyTorch",
    attention="window:192",
)
RESULTS = Method(label="out", source="out", kind="results", deblur=lambda pair: pair.blurred)


def paired(
    name: str,
    layout: LayoutName,
    count: int,
    *,
    split: Split | None = "test",
    limit: int | None = None,
    root: str = "r",
) -> PairedPictures:
    file = Path("a.png")
    pairs = tuple(Pair(name=f"{index:04}", blurred=file, sharp=file) for index in range(count))
    source = PairSet(name=name, layout=layout, split=split, pairs=pairs)
    return PairedPictures(name=name, root=Path(root), limit=limit, source=source)


def measured(
    chosen: EvaluationSet,
    blurred: Mapping[Metric, float],
    deblurred: Mapping[Metric, float],
    *,
    count: int | None = None,
    time_ms: float | None = 12.0,
    skipped: int = 0,
) -> Evaluation:
    """An evaluation in which every picture has the same figures."""
    names = [name for name, _ in chosen.files][:count]
    scores = tuple(
        PictureScore(name=name, size=(8, 9), blurred=blurred, deblurred=deblurred, time_ms=time_ms) for name in names
    )
    lost = tuple(Skipped(name=str(index), reason="") for index in range(skipped))
    return Evaluation(measured_set=chosen, scores=scores, skipped=lost)


BLURRED: Scores = {"psnr_db": 25.641, "ssim_matlab3d": 0.8, "ssim_skimage": 0.7}
DEBLURRED: Scores = {"psnr_db": 31.007, "ssim_matlab3d": 0.9, "ssim_skimage": 0.85}


def rows(*evaluations: Evaluation, method: Method = NETWORK) -> list[dict[str, list[str]]]:
    """The cells of each table by the first cell of their row."""
    tables: list[dict[str, list[str]]] = []
    for table in score_tables(method, evaluations):
        console = Console(width=200, file=io.StringIO())
        cells = zip(*(list(column.cells) for column in table.columns), strict=True)
        tables.append({str(first): [str(cell) for cell in rest] for first, *rest in cells})
        console.print(table)
    return tables


def text(*evaluations: Evaluation, method: Method = NETWORK) -> str:
    console = Console(width=80, file=io.StringIO())
    for table in score_tables(method, evaluations):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_row_a_method_and_columns_of_psnr_and_ssim() -> None:
    (table,) = rows(measured(paired("mine", "pairs", 3, split=None), BLURRED, DEBLURRED))
    assert table == {
        "blurred input": ["25.64", "0.800", "0.700", "–", "–"],
        "net": ["31.01", "0.900", "0.850", "3.5", "12"],
    }


def test_results_of_another_network_have_neither_size_nor_time() -> None:
    (table,) = rows(measured(paired("mine", "pairs", 3), BLURRED, DEBLURRED, time_ms=None), method=RESULTS)
    assert table["out"][-2:] == ["–", "–"]


def test_a_full_test_set_stands_beside_the_published_figures() -> None:
    evaluation = measured(paired("GoPro", "gopro", 1111), BLURRED, DEBLURRED)
    (table,) = rows(evaluation)
    assert next(iter(table)) == "blurred input"
    assert list(table)[-1] == "net"
    assert len(table) == 10
    # The paper's SSIM is MATLAB's: never beside scikit-image's.
    assert table["MSAN (paper)*"] == ["32.24", "0.956", "–", "35.9", "419*"]
    assert table["VDN*"] == ["31.65", "0.951", "–", "23.4", "236*"]
    notes = score_notes(NETWORK, [evaluation])
    assert any("RTX 2080 Ti" in note and "10.3390/e24101414" in note for note in notes)
    assert not any("peers are not printed" in note for note in notes)


@pytest.mark.parametrize(
    ("chosen", "count", "words"),
    [
        (paired("GoPro", "gopro", 1111, limit=7), None, "peers are not printed for GoPro: 7 of 1111 pairs"),
        (paired("GoPro", "gopro", 1111), 1110, "peers are not printed for GoPro: 1110 of 1111 pairs"),
        (paired("GoPro", "gopro", 1111, limit=1111), None, "peers are not printed for GoPro: --limit was given"),
        (paired("GoPro", "gopro", 1111, split="train"), None, "peers are not printed for GoPro: the split is train"),
        (paired("GoPro", "pairs", 1111), None, "peers are not printed for GoPro: no published figures"),
        (paired("mine", "pairs", 1111), None, "peers are not printed for mine (pairs): no published figures"),
    ],
)
def test_anything_less_stands_alone_and_says_why(chosen: EvaluationSet, count: int | None, words: str) -> None:
    evaluation = measured(chosen, BLURRED, DEBLURRED, count=count)
    (table,) = rows(evaluation)
    assert set(table) == {"blurred input", "net"}
    notes = score_notes(NETWORK, [evaluation])
    assert sum(note.startswith(words) for note in notes) == 1
    assert not any("RTX 2080 Ti" in note for note in notes)


def test_without_matlabs_ssim_no_published_ssim_is_printed() -> None:
    figures: Scores = {"psnr_db": 30.0, "ssim_skimage": 0.8}
    (table,) = rows(measured(paired("HIDE I", "hide", 1063), figures, figures))
    assert table["MSAN (paper)*"][:2] == ["31.42", "–"]


def test_sets_of_one_folder_share_a_table_and_only_the_full_one_has_peers() -> None:
    one = measured(paired("HIDE I", "hide", 1063), BLURRED, DEBLURRED)
    two = measured(paired("HIDE II", "hide", 962), BLURRED, DEBLURRED, count=961)
    other = measured(paired("mine", "pairs", 2, root="elsewhere"), BLURRED, DEBLURRED)
    first, second = rows(one, two, other)
    assert first["SRN-Deblur*"] == ["29.18", "0.912", "–", "–", "–", "–", "33.6", "814*"]
    assert set(second) == {"blurred input", "net"}


def test_realblur_is_printed_after_alignment_and_named_so() -> None:
    blurred: Scores = {**BLURRED, "aligned_psnr_db": 27.0, "aligned_ssim": 0.83}
    deblurred: Scores = {**DEBLURRED, "aligned_psnr_db": 28.5, "aligned_ssim": 0.86}
    evaluation = measured(paired("RealBlur-J", "realblur-j", 980), blurred, deblurred)
    (table,) = rows(evaluation)
    assert table["blurred input"][:2] == ["27.00", "0.830"]
    assert table["MSAN (paper)*"][:2] == ["28.83", "0.878"]
    assert "aligned" in text(evaluation)
    notes = score_notes(NETWORK, [evaluation])
    assert "RealBlur-J: +1.50 dB over the blurred input, 0 of 980 pictures worse" in notes
    assert any("ECC homography" in note for note in notes)


def test_the_widest_table_fits_into_80_columns() -> None:
    evaluations = [measured(paired(*given), BLURRED, DEBLURRED) for given in FULL_HIDE]
    lines = text(*evaluations).splitlines()
    assert any("Stack(4)-DMPHN*" in line and "86.9" in line and "637*" in line for line in lines)
    assert any(line.count("matlab") == line.count("skimage") == 2 for line in lines)


FULL_HIDE: tuple[tuple[str, LayoutName, int], ...] = (("HIDE I", "hide", 1063), ("HIDE II", "hide", 962))


def test_skipped_pictures_are_counted_in_the_notes() -> None:
    evaluation = measured(paired("mine", "pairs", 5), BLURRED, DEBLURRED, count=3, skipped=2)
    assert "mine: +5.37 dB over the blurred input, 0 of 3 pictures worse; 2 skipped" in score_notes(
        NETWORK, [evaluation]
    )


def saved(tmp_path: Path, *evaluations: Evaluation, method: Method = NETWORK) -> dict[str, Any]:
    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    save_json(tmp_path / "scores.json", method, evaluations)
    return json.loads((tmp_path / "scores.json").read_text(), parse_constant=refuse)


def test_the_blur_sets_json_has_its_keys(tmp_path: Path) -> None:
    chosen = BlurredPictures(name="kodak", root=tmp_path, source=(tmp_path / "b.png", tmp_path / "a.png"))
    scores = tuple(
        PictureScore(name=name, size=(8, 9), blurred={"psnr_db": 20.0}, deblurred={"psnr_db": db}, length_px=length)
        for name, db, length in (("a.png", 21.0, 2.0), ("b.png", 19.5, 18.0))
    )
    body = saved(tmp_path, Evaluation(measured_set=chosen, scores=scores))
    assert (body["model"], body["blur_set_version"], body["pictures"], body["worse"]) == ("run/net.pth", 1, 2, 1)
    assert (body["blurred_db"], body["deblurred_db"], body["gain_db"]) == (20.0, 20.25, 0.25)
    assert {"msan", "numpy"} <= body["versions"].keys()
    assert body["date"].endswith("+00:00")
    first = {"name": "a.png", "length_px": 2.0, "blurred_db": 20.0, "deblurred_db": 21.0, "gain_db": 1.0}
    assert body["scores"][0] == first | {"height_px": 8, "width_px": 9}


def test_the_json_says_what_was_measured_with_what(tmp_path: Path) -> None:
    chosen = paired("GoPro", "gopro", 1111, limit=2)
    evaluation = measured(chosen, BLURRED, DEBLURRED, count=1, skipped=1)
    body = saved(tmp_path, evaluation)
    assert body["method"] == {
        "kind": "checkpoint",
        "sha256": "0" * 64,
        "size_bytes": 3_540_000,
        "backend": "torch-cpu",
        "device": "CPU, PyTorch",
        "tile_area_px": None,
        "attention": "window:192",
    }
    expected = {"data": "GoPro", "layout": "gopro", "split": "test", "pictures_found": 1111, "limit": 2}
    expected |= {"full_test_set": False, "pictures": 1, "skipped": [{"name": "0", "reason": ""}], "time_ms": 12.0}
    assert body.items() >= expected.items()
    assert set(body["metrics"]) == {"*_db", "*_ssim_matlab3d", "*_ssim_skimage"}
    assert body["deblurred_ssim_matlab3d"] == body["scores"][0]["deblurred_ssim_matlab3d"] == 0.9
    full = saved(tmp_path, measured(paired("GoPro", "gopro", 1111), BLURRED, DEBLURRED))
    assert full["full_test_set"] is True


def test_infinite_figures_are_words_in_json(tmp_path: Path) -> None:
    same: Scores = {"psnr_db": float("inf")}
    body = saved(tmp_path, measured(paired("mine", "pairs", 1), {"psnr_db": 20.0}, same, time_ms=None))
    assert (body["deblurred_db"], body["gain_db"], body["scores"][0]["deblurred_db"]) == ("inf", "inf", "inf")
    assert "time_ms" not in body


def test_several_sets_stand_in_a_list(tmp_path: Path) -> None:
    aligned: Scores = {"psnr_db": 20.0, "aligned_psnr_db": 22.0}
    better: Scores = {"psnr_db": 19.0, "aligned_psnr_db": 25.0}
    one = measured(paired("RealBlur-J", "realblur-j", 2), aligned, better)
    two = measured(paired("mine", "pairs", 3), BLURRED, DEBLURRED)
    body = saved(tmp_path, one, two)
    assert [entry["data"] for entry in body["sets"]] == ["RealBlur-J", "mine"]
    assert [entry["pictures"] for entry in body["sets"]] == [2, 3]
    first = body["sets"][0]
    assert (first["gain_db"], first["worse"], first["aligned_gain_db"]) == (-1.0, 2, 3.0)
    assert (first["blurred_aligned_db"], first["deblurred_aligned_db"]) == (22.0, 25.0)
    assert "pictures" not in body


def test_the_csv_has_a_line_for_each_picture(tmp_path: Path) -> None:
    one = measured(paired("one", "pairs", 2), BLURRED, DEBLURRED)
    two = measured(paired("two, too", "pairs", 1), {"psnr_db": 20.0}, {"psnr_db": float("inf")}, time_ms=None)
    save_csv(tmp_path / "scores.csv", [one, two])
    with (tmp_path / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == CSV_COLUMNS
    assert [(line["set"], line["name"]) for line in lines] == [("one", "0000"), ("one", "0001"), ("two, too", "0000")]
    assert (lines[0]["height_px"], lines[0]["width_px"], lines[0]["length_px"]) == ("8", "9", "")
    assert float(lines[1]["deblurred_ssim_skimage"]) == 0.85
    assert float(lines[1]["gain_db"]) == pytest.approx(31.007 - 25.641)
    assert (lines[2]["deblurred_db"], lines[2]["blurred_ssim_skimage"], lines[2]["time_ms"]) == ("inf", "", "")


def flat(level: int, height: int = 300, width: int = 400) -> PictureArray:
    return np.full((height, width, 3), level, np.uint8)


def add(kept: Extremes, name: str, gain_db: float, blurred: PictureArray, deblurred: PictureArray, sharp: PictureArray):  # noqa: ANN201
    height, width = sharp.shape[:2]
    scores: tuple[Scores, Scores] = {"psnr_db": 20.0}, {"psnr_db": 20.0 + gain_db}
    score = PictureScore(name=name, size=(height, width), blurred=scores[0], deblurred=scores[1])
    kept.add(score, MeasuredPair(name=name, file=Path(name), blurred=blurred, sharp=sharp), deblurred)


def kept_of(gains: list[float], count: int) -> Extremes:
    kept = Extremes("set", count)
    for index, gain in enumerate(gains):
        add(kept, str(index), gain, flat(10), flat(20), flat(30))
    return kept


@pytest.mark.parametrize(
    ("count", "largest", "smallest"),
    [
        (1, ["3"], ["1"]),
        (2, ["3", "4"], ["1", "2"]),
        (3, ["3", "4", "0"], ["1", "2"]),
        (9, ["3", "4", "0"], ["1", "2"]),
    ],
)
def test_the_sheet_keeps_the_extremes_and_shows_no_picture_twice(
    count: int, largest: list[str], smallest: list[str]
) -> None:
    kept = kept_of([0.5, -1.0, 0.2, float("inf"), 3.0], count)
    assert [row.score.name for row in kept.largest] == largest
    assert [row.score.name for row in kept.smallest] == smallest


def test_a_single_picture_is_shown_once() -> None:
    kept = kept_of([1.0], 4)
    assert (len(kept.largest), len(kept.smallest)) == (1, 0)


def test_a_sheet_without_rows_is_refused() -> None:
    with pytest.raises(MsanError, match="at least one picture"):
        Extremes("set", 0)


def cell(sheet: PictureArray, half: int, place: int, row: int = 0) -> PictureArray:
    """The pixels of a crop on the sheet: half 0 has the largest gains, place 0 the blurred pictures."""
    left = MARGIN_PX + half * (3 * CELL_PX + 2 * GAP_PX + MARGIN_PX) + place * (CELL_PX + GAP_PX)
    top = MARGIN_PX + TITLE_PX + 4 * LINE_PX + row * ROW_PX
    return sheet[top : top + CELL_PX, left : left + CELL_PX]


def test_the_sheet_shows_blurred_deblurred_sharp(tmp_path: Path) -> None:
    kept = Extremes("set", 2)
    for name, gain, level in (("good", 2.0, 40), ("bad", -1.0, 140)):
        add(kept, name, gain, flat(level), flat(level + 20), flat(level + 40))
    save_sheet(tmp_path / "sheet.png", [kept], "net")
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.array(image.convert("RGB"))
    for half, level in ((0, 40), (1, 140)):
        for place in range(3):
            np.testing.assert_array_equal(cell(sheet, half, place), flat(level + 20 * place, CELL_PX, CELL_PX))
    assert (sheet == 0).any(), "there are letters"


def test_the_crop_is_where_the_input_differs_most_and_the_same_in_all_three() -> None:
    sharp = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    blurred, deblurred = sharp.copy(), 255 - sharp
    blurred[440:680, 560:800] ^= 64
    kept = Extremes("set", 1)
    add(kept, "a", 1.0, blurred, deblurred, sharp)
    (row,) = kept.largest
    top, left = row.corner
    assert top <= 440
    assert top + CELL_PX >= 680
    assert left <= 560
    assert left + CELL_PX >= 800
    for crop, picture in zip(row.crops, (blurred, deblurred, sharp), strict=True):
        np.testing.assert_array_equal(crop, picture[top : top + CELL_PX, left : left + CELL_PX])


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (30, 500), (500, 30)])
def test_pictures_of_any_size_fit_on_the_sheet(size: tuple[int, int]) -> None:
    kept = Extremes("set", 1)
    add(kept, "a", 1.0, flat(10, *size), flat(20, *size), flat(30, *size))
    sheet = draw_sheet([kept], "net")
    for place in range(3):
        shown = cell(sheet, 0, place)
        factor = max(1, CELL_PX // max(size))
        height, width = (min(CELL_PX, side * factor) for side in size)
        assert (shown[:height, :width] == 10 + 10 * place).all()
        assert (shown[height:] == 255).all()


def test_a_long_name_does_not_run_into_its_neighbour() -> None:
    kept = Extremes("set", 1)
    for name, gain in (("long/" * 60, 2.0), ("b", 1.0)):
        add(kept, name, gain, flat(10), flat(20), flat(30))
    sheet = draw_sheet([kept], "net")
    gap = MARGIN_PX + 3 * CELL_PX + 2 * GAP_PX
    assert (sheet[MARGIN_PX + TITLE_PX + 3 * LINE_PX :, gap + 2 : gap + MARGIN_PX - 2] == 255).all()


def test_a_sheet_of_two_sets_is_as_tall_as_both() -> None:
    one, two = draw_sheet([kept_of([1.0], 1)], "net"), draw_sheet([kept_of([1.0, 2.0, 3.0, 4.0], 2)], "net")
    both = draw_sheet([kept_of([1.0], 1), kept_of([1.0, 2.0, 3.0, 4.0], 2)], "net")
    assert both.shape[0] == one.shape[0] + two.shape[0] - MARGIN_PX
    assert both.shape[1] == one.shape[1]


def test_a_sheet_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"sheet\.gif"):
        save_sheet(tmp_path / "sheet.gif", [kept_of([1.0], 1)], "net")
