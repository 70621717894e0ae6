"""Two nodes: the plain run's results, journal and skip rules; a node that is killed; files that kill workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.in_process import Command
from tests.runtime.cluster.conftest import contents, digests, make_pictures

from msan_runtime.atomic import replacing
from msan_runtime.cluster import run
from msan_runtime.cluster.worker import Worker
from msan_runtime.journal import JOURNAL_NAME

ray = pytest.importorskip("ray")
RAY = ("--ray", "auto", "--ray-workers", "2", "--ray-cpus", "1")


def done_lines(out: Path) -> Counter[str]:
    """How often the journal notes each result as done."""
    rows = (out / JOURNAL_NAME).read_bytes().splitlines()
    return Counter(entry["target"] for row in rows if "target" in (entry := json.loads(row)))


def ended(out: Path) -> set[str]:
    """The lines of the journal that say what became of files."""
    return {row for row in (out / JOURNAL_NAME).read_text().splitlines() if '"starts"' not in row}


@pytest.mark.usefixtures("two_nodes")
def test_results_and_journal_are_those_of_the_plain_run(deblur: Command, album: Path, tmp_path: Path) -> None:
    plain = deblur(album, "-o", tmp_path / "plain", "--compare")
    spread = deblur(album, "-o", tmp_path / "spread", "--compare", *RAY, "--stats")
    assert (plain.code, spread.code) == (1, 1)
    assert spread.out.splitlines()[0] == f"10 of 11 pictures deblurred to {tmp_path / 'spread'}"
    assert digests(contents(tmp_path / "spread")) == digests(contents(tmp_path / "plain"))
    assert len(contents(tmp_path / "plain")) == 20
    assert ended(tmp_path / "spread") == ended(tmp_path / "plain")
    assert spread.err.count("bad.jpg is not a JPEG, PNG, WebP or TIFF picture") == 1
    assert "runs on ort-cpu" in spread.err
    assert "11 files on ort-cpu" in spread.out


@pytest.mark.usefixtures("two_nodes")
def test_what_is_done_is_not_done_again_by_either_run(deblur: Command, album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (album / "day" / "bad.jpg").unlink()
    assert deblur(album, "-o", out, *RAY).out == f"10 of 10 pictures deblurred to {out}\n"
    assert deblur(album, "-o", out).out == f"10 of 10 pictures deblurred to {out} (10 of them before)\n"
    (out / "0.png").unlink()
    make_pictures(album, ["new.png"])
    assert deblur(album, "-o", out, *RAY).out == f"11 of 11 pictures deblurred to {out} (9 of them before)\n"
    assert done_lines(out) == Counter(contents(out).keys()) + Counter(["0.png"])
    refused = deblur(album, "-o", out, "--quality", "80", *RAY)
    assert refused.code == 2
    assert "holds results with other settings: --quality by default, now 80" in refused.err
    again = deblur(album, "-o", out, "--quality", "80", "--restart", *RAY)
    assert again.out == f"11 of 11 pictures deblurred to {out}\n"


@pytest.mark.usefixtures("two_nodes")
def test_existing_results_are_kept_if_asked_for(deblur: Command, album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "0.png").write_text("mine")
    assert deblur(album, "-o", out, "--skip-existing", *RAY).out.endswith("(1 of them before)\n")
    assert (out / "0.png").read_text() == "mine"


@pytest.mark.usefixtures("two_nodes")
def test_one_picture_under_its_own_name_leaves_no_journal(deblur: Command, album: Path, tmp_path: Path) -> None:
    assert deblur(album / "0.png", "-o", tmp_path / "sharp.png", *RAY).code == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["sharp.png"]


def test_a_cluster_is_given_its_token_and_no_other(two_nodes: Any, album: Path, tmp_path: Path) -> None:
    program = "import msan_runtime.cli as cli; cli.entry_points = lambda **_: (); cli.main()"
    command = [sys.executable, "-c", program, "deblur", album / "0.png", "-o", tmp_path / "0.png"]
    command += ["--backend", "ort-cpu", "--ray", two_nodes.address, "--ray-cpus", "1"]

    def run(**token: str) -> subprocess.CompletedProcess[str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
        environment = {**own, "HOME": str(tmp_path), **token}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    for wrong in ({}, {"RAY_AUTH_TOKEN": "0" * 64}):
        refused = run(**wrong)
        assert refused.returncode == 2
        assert f"error: the Ray cluster at {two_nodes.address} wants its token. ray get-auth-token" in refused.stderr
    done = run(RAY_AUTH_TOKEN=os.environ["RAY_AUTH_TOKEN"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "0.png").exists()


def test_a_killed_node_loses_and_doubles_nothing(
    two_nodes: Any, deblur: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    make_pictures(source, [f"{number:02}.png" for number in range(40)], (160, 200))
    assert deblur(source, "-o", tmp_path / "plain").code == 0
    node = two_nodes.list_all_nodes()[-1]
    done_at_the_kill: list[int] = []

    def kill() -> None:
        while len(contents(out)) < 8:
            time.sleep(0.02)
        done_at_the_kill.append(len(contents(out)))
        two_nodes.remove_node(node, allow_graceful=False)

    out.mkdir()
    killer = threading.Thread(target=kill)
    killer.start()
    finished = deblur(source, "-o", out, *RAY)
    killer.join()
    two_nodes.add_node(num_cpus=1)
    capsys.readouterr()
    assert finished.code == 0, finished.err
    assert finished.out == f"40 of 40 pictures deblurred to {out}\n"
    assert done_at_the_kill[0] < 40
    assert digests(contents(out)) == digests(contents(tmp_path / "plain"))
    assert done_lines(out) == Counter(f"{number:02}.png" for number in range(40))


class MortalWorker(Worker):
    """Dies of files that are called so, while it writes the result."""

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        if self._begun_often(batch):
            return super().__call__(batch)
        for source, target in zip(batch["source"], batch["target"], strict=True):
            if "deadly" in str(source):
                with replacing(Path(str(target))):
                    os._exit(1)
        return super().__call__(batch)

    def _begun_often(self, batch: Mapping[str, Sequence[Any]]) -> bool:
        return ray.get(self._attempts.begin.remote(int(batch["number"][0]))) > 3


@pytest.mark.usefixtures("two_nodes")
def test_a_file_that_workers_die_of_is_reported_and_the_rest_done(
    deblur: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    make_pictures(source, [f"{number:02}.png" for number in range(40)])
    (source / "07.png").rename(source / "07-deadly.png")
    monkeypatch.setattr(run, "Worker", _by_value(MortalWorker))
    finished = deblur(source, "-o", out, *RAY)
    assert finished.code == 1
    assert finished.out == f"39 of 40 pictures deblurred to {out}\n"
    assert (
        f"error: {source / '07-deadly.png'} died of 4 workers: it may take more memory than a node has" in finished.err
    )
    assert set(contents(out)) == {f"{number:02}.png" for number in range(40)} - {"07.png"}


def _by_value(worker: type[Worker]) -> type[Worker]:
    """Workers do not see the tests' modules: the class travels whole."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[worker.__module__])
    return worker


@pytest.mark.usefixtures("two_nodes")
def test_a_run_that_is_closed_early_goes_on_later(deblur: Command, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    make_pictures(source, [f"{number:02}.png" for number in range(40)], (160, 200))
    stop = _stopping_after(10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msan_runtime.cluster.ledger.LocalLedger.settle", stop)
        stopped = deblur(source, "-o", out, *RAY)
    assert stopped.code == 130
    before = done_lines(out)
    assert sum(before.values()) == 10
    finished = deblur(source, "-o", out, *RAY)
    assert finished.out == f"40 of 40 pictures deblurred to {out} (10 of them before)\n"
    assert done_lines(out) == Counter(f"{number:02}.png" for number in range(40))


def _stopping_after(most: int) -> Callable[..., Any]:
    """``settle`` that is interrupted, as by Ctrl-C, when it was called so often."""
    from msan_runtime.cluster.ledger import LocalLedger

    settle, calls = LocalLedger.settle, Counter[str]()

    def stopping(*arguments: Any) -> Any:
        calls["settle"] += 1
        if calls["settle"] > most:
            raise KeyboardInterrupt
        return settle(*arguments)

    return stopping
