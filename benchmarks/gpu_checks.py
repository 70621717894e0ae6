"""The checks in `tests/gpu` on this machine, and what became of each: passed, skipped and why, or failed and how.

    python benchmarks/gpu_checks.py [--json FILE] [PYTEST ARGUMENTS]

What is not for this command goes to pytest: `-k memory` runs some of the checks alone. Exit code: pytest's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from machine import describe_machine
from rich.console import Console

from msan_runtime.doctor.gpu import find_gpus

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "msan",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt-rtx-cu13",
    "tensorrt-cu13",
    "cuda-core",
    "cuda-bindings",
)
NOT_PASSED = {"skipped": "skipped", "failure": "failed", "error": "failed"}

screen = Console(highlight=False, markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments, passed_on = parser.parse_known_args()
    exit_code, suites = checked(passed_on)
    rows = [row for suite in suites for row in map(told, suite.iter("testcase"))]
    if not rows:
        raise SystemExit(f"pytest ran no check of tests/gpu: exit code {exit_code}")
    for row in rows:
        screen.print(f"{row['outcome']:8} {row['test']} {row.get('reason', '')}", soft_wrap=True)
    counts = dict(Counter(row["outcome"] for row in rows))
    screen.print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    if arguments.json is not None:
        found = [properties_of(suite) for suite in suites]
        body = {
            "machine": describe_machine(installed()),
            "gpu": dataclasses.asdict(find_gpus()),
            "device_backend": next((one["device backend"] for one in found if "device backend" in one), None),
            "arguments": passed_on,
            "counts": counts,
            "checks": rows,
        }
        arguments.json.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n")
    raise SystemExit(exit_code)


def checked(arguments: Sequence[str]) -> tuple[int, list[ElementTree.Element]]:
    """Run pytest in a process of its own; gives its exit code and the suites of its report, none if it has none."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ("-m", "gpu", f"--junit-xml={report}")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "tests/gpu", *options, *arguments], cwd=ROOT, check=False
        )
        suites = list(ElementTree.parse(report).getroot().iter("testsuite")) if report.exists() else []
    return done.returncode, suites


def told(case: ElementTree.Element) -> dict[str, Any]:
    """A check as a row: its name, what became of it, how long it took, why, and what it recorded."""
    row: dict[str, Any] = {
        "test": ".".join(filter(None, (case.get("classname"), case.get("name")))),
        "outcome": "passed",
        "seconds": round(float(case.get("time", 0)), 2),
    }
    for child in case:
        if child.tag in NOT_PASSED:
            row |= {"outcome": NOT_PASSED[child.tag], "reason": reason_of(child)}
    recorded = properties_of(case)
    return row | ({"recorded": recorded} if recorded else {})


def reason_of(child: ElementTree.Element) -> str:
    """The first line of a message, without the machine's paths."""
    message = child.get("message") or child.text or ""
    return (message.strip().splitlines() or [""])[0].replace(f"{ROOT}/", "")[:2000]


def properties_of(element: ElementTree.Element) -> dict[str, str]:
    """What a check, or the run, recorded."""
    return {one.get("name", ""): one.get("value", "") for one in element.findall("properties/property")}


def installed() -> tuple[str, ...]:
    """Those of ``PACKAGES`` that are there."""
    return tuple(name for name in PACKAGES if is_installed(name))


def is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
