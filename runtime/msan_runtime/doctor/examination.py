"""The whole examination: findings in words with advice, and the figures behind them."""

from __future__ import annotations

import os
import platform
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from msan_runtime.bundle import open_bundle
from msan_runtime.cache import cache_folder
from msan_runtime.doctor.gpu import GpuReport, find_gpus
from msan_runtime.doctor.packages import EXTRAS, clash, missing_extras, reinstallation
from msan_runtime.doctor.trial import Trial, try_backends
from msan_runtime.errors import MsanError
from msan_runtime.machine import describe_machine, memory_bytes, processor_name, usable_cores

__all__ = ["Examination", "Finding", "examine"]

State = Literal["ok", "note", "bad"]

PACKAGES = (
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt-rtx",
    "tensorrt",
    "cuda-core",
    "av",
)
INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
}
CPUINFO = Path("/proc/cpuinfo")
LEAST_MEMORY_BYTES = 2 << 30
LOOK_HERE = "See what is wrong with: msan doctor"
"""How a message of the runtime may end; not in the report of the doctor itself."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        state: ``ok``, ``note`` (something is missing that is not needed), ``bad`` (something does not work).
        words: what was found.
        advice: what to do, or empty.
    """

    subject: str
    state: State
    words: str
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """All findings, what came of each backend, and the machine."""

    findings: tuple[Finding, ...]
    trials: tuple[Trial, ...]
    gpu: GpuReport
    machine: dict[str, Any]

    @property
    def fastest(self) -> Trial | None:
        """The backend that works and took the least time; ``None`` if none works."""
        return min((trial for trial in self.trials if trial.works), key=_tile_ms, default=None)

    @property
    def healthy(self) -> bool:
        """Whether pictures can be deblurred here."""
        return self.fastest is not None and all(one.state != "bad" for one in self.findings if one.subject == "bundle")


def examine(bundle: str, *, say: Callable[[str], None] | None = None) -> Examination:
    """Look at everything; takes some seconds. ``say`` is told what is looked at."""
    gpu = find_gpus()
    machine = describe_machine(PACKAGES)
    findings = [
        *_machine_findings(),
        *_gpu_findings(gpu),
        *_package_findings(),
        _cache_finding(),
        _bundle_finding(bundle),
    ]
    trials = try_backends(bundle, say=say) if findings[-1].state != "bad" else ()
    findings += [_trial_finding(trial, gpu) for trial in trials]
    return Examination(findings=tuple(findings), trials=trials, gpu=gpu, machine=machine)


def _tile_ms(trial: Trial) -> float:
    return trial.tile_ms or 0.0


def _machine_findings() -> Iterator[Finding]:
    words = f"{version('msan')}, Python {platform.python_version()}, {platform.platform()}"
    yield Finding(subject="msan", state="ok", words=words)
    known = ", ".join(name for flag, name in INSTRUCTIONS.items() if flag in _flags())
    cores = f"{usable_cores()} cores" if usable_cores() > 1 else "1 core"
    yield Finding(subject="processor", state="ok", words=f"{processor_name()}, {cores}{', ' + known if known else ''}")
    total = memory_bytes()
    if total is None:
        return
    little = total < LEAST_MEMORY_BYTES
    advice = "Give the network less: msan deblur --memory 256MiB" if little else ""
    state = "note" if little else "ok"
    yield Finding(subject="memory", state=state, words=f"{total / 2**30:.1f} GiB", advice=advice)


def _flags() -> frozenset[str]:
    """The processor's features as Linux names them."""
    if not CPUINFO.exists():
        return frozenset()
    lines = (line for line in CPUINFO.read_text().splitlines() if line.startswith("flags"))
    return frozenset(next(lines, "").split())


def _gpu_findings(report: GpuReport) -> Iterator[Finding]:
    driver = f"NVIDIA driver {report.driver}, CUDA up to {report.cuda}" if report.driver else ""
    if report.problem:
        broken = report.cuda != ""
        advice = "Check it with nvidia-smi, and CUDA_VISIBLE_DEVICES" if broken else ""
        words = f"{report.problem}: pictures are deblurred on the processor"
        yield Finding(subject="GPU", state="bad" if broken else "note", words=words, advice=advice)
    for gpu in report.gpus:
        words = f"{gpu.name}, compute capability {gpu.capability}, {gpu.memory_bytes / 2**30:.0f} GiB; {driver}"
        yield Finding(subject="GPU", state="ok", words=words)


def _package_findings() -> Iterator[Finding]:
    wrong = clash()
    if wrong is not None:
        yield Finding(subject="onnxruntime", state="bad", words=wrong[0], advice=wrong[1])
    missing = missing_extras()
    for extra, (_, use) in EXTRAS.items():
        there = extra not in missing
        advice = "" if there else f"pip install 'msan[{extra}]'"
        state = "ok" if there else "note"
        yield Finding(subject=extra, state=state, words=f"{use}: {'yes' if there else 'no'}", advice=advice)


def _cache_finding() -> Finding:
    folder = cache_folder()
    probe = folder / f".msan-doctor.{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        words = f"{folder} cannot be written ({error.strerror or error}): engines and findings are made anew each time"
        home = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
        advice = f"Name a folder that can be written: {home}=DIR (now {os.environ.get(home, 'not set')})"
        return Finding(subject="cache", state="note", words=words, advice=advice)
    return Finding(subject="cache", state="ok", words=f"{folder} (msan cache list)")


def _bundle_finding(name: str) -> Finding:
    try:
        bundle = open_bundle(name)
    except MsanError as error:
        return Finding(subject="bundle", state="bad", words=str(error))
    manifest = bundle.manifest
    words = f"{bundle.folder}: {manifest.name}, {len(manifest.files)} files as its manifest says"
    if manifest.self_test is None:
        advice = "Deploy the checkpoint again, then pictures of each backend are checked, too"
        return Finding(subject="bundle", state="note", words=f"{words}, without a self-test", advice=advice)
    return Finding(subject="bundle", state="ok", words=words)


def _trial_finding(trial: Trial, gpu: GpuReport) -> Finding:
    if trial.works:
        right = "gives the right picture" if trial.checked else "runs (its picture was not checked)"
        words = f"{right}, {_tile_ms(trial):.0f} ms for 256×256 px; {trial.device}"
        return Finding(subject=trial.backend, state="ok", words=words)
    needless = not gpu.gpus and trial.backend in ("rtx", "tensorrt", "ort-cuda")
    return Finding(
        subject=trial.backend,
        state="note" if needless or "not installed" in trial.problem else "bad",
        words=trial.problem.removesuffix(f". {LOOK_HERE}"),
        advice="" if needless else _advice(trial),
    )


def _advice(trial: Trial) -> str:
    if trial.problem.startswith("onnxruntime does not load"):
        return reinstallation()
    if trial.backend == "ort-cpu" and "self-test" in trial.problem:
        return "That is hardly ONNX Runtime but the bundle: deploy the checkpoint again"
    if "was built by" in trial.problem or "not built for this GPU" in trial.problem:
        return "It is built again at the first run; now with: msan cache prebuild"
    if "crashed" in trial.problem:
        return "Install its package again, and update the driver; until then take another: msan deblur --backend NAME"
    return ""
