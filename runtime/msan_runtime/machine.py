"""What this machine is, as far as measurements depend on it: processor, cores, versions, date, memory used."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = [
    "compute_threads",
    "describe_machine",
    "installed_versions",
    "is_bound",
    "memory_bytes",
    "peak_rss_bytes",
    "processor_name",
    "usable_cores",
]

CPUS = Path("/sys/devices/system/cpu")


def describe_machine(packages: Iterable[str]) -> dict[str, Any]:
    """Processor, usable cores, system, Python, versions of those of ``packages`` that are installed, date."""
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": installed_versions(packages),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def processor_name() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        return names[0] if names else platform.machine()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Logical cores that this process may use: fewer than the machine has if it was bound to some."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_bound() -> bool:
    """Whether this process may use only some of the machine's cores."""
    return usable_cores() < (os.cpu_count() or 1)


def compute_threads() -> int:
    """Threads that a network on the CPU is best run with: one for each physical core that may be used."""
    if sys.platform != "linux":
        return usable_cores()
    siblings = (CPUS / f"cpu{number}" / "topology" / "thread_siblings_list" for number in os.sched_getaffinity(0))
    # A system that does not tell has one thread a core, as far as we know.
    return len({path.read_text() if path.exists() else str(path) for path in siblings})


def memory_bytes() -> int | None:
    """Main memory of the machine; ``None`` where the system does not tell."""
    if sys.platform == "win32":
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of ``packages``; those that are not installed are left out."""
    found: dict[str, str] = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_rss_bytes() -> int | None:
    """The most memory that this process has held so far; ``None`` where the system does not tell."""
    if sys.platform == "linux":
        # Not getrusage: its figure starts at that of the process which started this one.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
