"""Clusters on this machine, pictures, and the command run in this process against them."""

from __future__ import annotations

import hashlib
import os
import secrets
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.in_process import Command, in_process

from msan_runtime.cluster.options import RayOptions
from msan_runtime.cluster.session import ray_session

# Ray keeps a token for its clusters in the home folder, if it is given none before it is imported.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_AUTH_MODE", "token")

CLUSTER_TESTS = Path(__file__).parent

RAYS_OWN = (
    # Ray Data sets its own deprecated settings to their defaults, and its client code warns of itself.
    r"ignore::DeprecationWarning:ray\.",
    # Sockets and log files that Ray leaves to the end of the process.
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::ResourceWarning",
)


DEATHS_SEEN_SOON = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings of Ray's own code are no errors here; those of ours still are."""
    for item in items:
        if CLUSTER_TESTS in item.path.parents:
            for line in RAYS_OWN:
                item.add_marker(pytest.mark.filterwarnings(line))


@pytest.fixture(scope="module")
def two_nodes() -> Generator[Any]:
    """A cluster of two nodes of one core each, which this process is connected to."""
    pytest.importorskip("ray")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False, "_system_config": DEATHS_SEEN_SOON}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(num_cpus=1)
        with ray_session(RayOptions(address=str(cluster.address))):
            yield cluster
        cluster.shutdown()


@pytest.fixture
def deblur(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Generator[Command]:
    """Runs ``msan deblur`` in this process."""
    with in_process(monkeypatch, capsys, lean=True) as msan:
        yield lambda *arguments: msan("deblur", *arguments, "--backend", "ort-cpu")


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A folder of ten pictures of several kinds, some of them below, and one that is none."""
    folder = tmp_path / "album"
    make_pictures(folder, [f"{number}.{('png', 'jpg', 'webp')[number % 3]}" for number in range(8)])
    make_pictures(folder / "day", ["8.png", "9.tif"])
    (folder / "day" / "bad.jpg").write_text("no picture")
    return folder


def make_pictures(folder: Path, names: list[str], size: tuple[int, int] = (40, 56)) -> None:
    """Smooth pictures of (height, width), each another."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for number, name in enumerate(names):
        waves = [np.sin(rows / (3 + number)) + np.cos(columns / (5 + shift)) for shift in range(3)]
        Image.fromarray(np.uint8(127 + 60 * np.stack(waves, axis=2))).save(folder / name)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but those of the journal, by its inner path."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".msan-journal" not in str(path))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def digests(files: dict[str, bytes]) -> dict[str, str]:
    """The SHA-256 of each: a comparison that fails is then told in few lines."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
