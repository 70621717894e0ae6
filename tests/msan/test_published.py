"""Published figures: the paper's tables, and when they may stand beside a measurement."""

from __future__ import annotations

from typing import Any

import pytest

from msan.evaluation.published import FULL_TEST_SETS, PUBLISHED, reason_not_full

PAPER = """
SRN-Deblur      30.20/0.933 29.18/0.912 27.46/0.891 35.27/0.937 28.48/0.861  33.6 814
DeblurGAN-v2    29.08/0.918 28.29/0.896 26.65/0.872 35.11/0.935 28.69/0.866 244.5 142
DSDeblur        30.96/0.942 29.98/0.923 28.14/0.902 35.39/0.938 28.39/0.859  49.8 805
Stack(4)-DMPHN  31.39/0.948 29.80/0.925 28.34/0.910 35.48/0.947 27.80/0.847  86.9 637
MTRNN           31.13/0.945 29.98/0.926 28.24/0.908 35.79/0.951 28.44/0.862  10.6 492
HFRSN-MSGSN     31.85/0.951 30.30/0.929 28.58/0.911 35.40/0.934 28.31/0.854 108.3 899
VDN             31.65/0.951 30.09/0.929 28.43/0.912 35.54/0.948 28.18/0.855  23.4 236
MSAN            32.24/0.956 31.42/0.944 29.40/0.926 35.96/0.953 28.83/0.878  35.9 419
"""
"""Columns: GoPro, HIDE I, HIDE II, RealBlur-R, RealBlur-J, size, time."""

SETS = ("GoPro", "HIDE I", "HIDE II", "RealBlur-R", "RealBlur-J")
GOPRO: dict[str, Any] = {"layout": "gopro", "split": "test", "pairs": 1111, "measured": 1111, "limited": False}


def test_the_figures_are_the_papers() -> None:
    rows = [line.split() for line in PAPER.strip().splitlines()]
    assert len(rows) == len(PUBLISHED)
    for (name, *cells, size, time), method in zip(rows, PUBLISHED, strict=True):
        assert method.name.removesuffix(" (paper)") == name
        assert (method.size_mb, method.time_ms) == (float(size), float(time))
        figures = {one: tuple(map(float, cell.split("/"))) for one, cell in zip(SETS, cells, strict=True)}
        assert dict(method.scores) == figures


def test_the_counts_are_the_data_sets() -> None:
    assert [FULL_TEST_SETS[name].pairs for name in SETS] == [1111, 1063, 962, 980, 980]
    assert [FULL_TEST_SETS[name].layout for name in SETS] == ["gopro", "hide", "hide", "realblur-r", "realblur-j"]


def test_a_full_test_set_is_full() -> None:
    assert reason_not_full("GoPro", **GOPRO) is None
    for name, full in FULL_TEST_SETS.items():
        given: dict[str, Any] = GOPRO | {"layout": full.layout, "pairs": full.pairs, "measured": full.pairs}
        assert reason_not_full(name, **given) is None


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("GoPro", {"measured": 7, "limited": True}, "7 of 1111 pairs"),
        ("GoPro", {"measured": 1110}, "1110 of 1111 pairs"),
        ("GoPro", {"pairs": 1110, "measured": 1110}, "1110 of 1111 pairs"),
        ("GoPro", {"pairs": 1112, "measured": 1112}, "1112 pairs in place of 1111"),
        ("GoPro", {"pairs": 1112, "measured": 1111, "limited": True}, "1112 pairs in place of 1111"),
        ("GoPro", {"limited": True}, "--limit was given"),
        ("GoPro", {"split": "train"}, "the split is train, not test"),
        ("GoPro", {"split": None}, "the split is None, not test"),
        ("GoPro", {"layout": "pairs"}, "no published figures for a data set of layout pairs"),
        ("GoPro (gamma)", {"layout": "gopro-gamma"}, "no published figures for a data set of layout gopro-gamma"),
        ("HIDE I", {"layout": "hide"}, "1111 pairs in place of 1063"),
    ],
)
def test_anything_less_is_not(name: str, change: dict[str, Any], reason: str) -> None:
    assert reason_not_full(name, **GOPRO | change) == reason
