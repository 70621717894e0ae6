"""Parts of a cluster run that need no cluster: options, workers, stores, plans of addresses, cores."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.in_process import Command
from tests.runtime.cluster.conftest import contents, make_pictures

from msan_runtime.bundle import find_bundle
from msan_runtime.cluster import stores, worker
from msan_runtime.cluster.addresses import AddressLedger, StoreJournal, plan_addresses
from msan_runtime.cluster.head import watched
from msan_runtime.cluster.options import ClusterError, RayOptions, WorkerOptions, worker_range_from_text
from msan_runtime.cluster.session import Pool, plan_pool
from msan_runtime.cluster.stores import Store, is_address, open_store
from msan_runtime.cluster.tasks import Ended, Report, Task, columns_of
from msan_runtime.cluster.worker import Worker
from msan_runtime.errors import MissingExtraError, PictureError
from msan_runtime.journal import JournalError, Run, model_digest
from msan_runtime.loading import LoadOptions
from msan_runtime.manifest import load_manifest
from msan_runtime.naming import Naming

RUN = Run(model="tiny", model_sha256="a" * 64)


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> WorkerOptions:
    """Of a worker that loads the shipped model on the CPU, and is bound to no cores."""
    monkeypatch.setattr(worker, "_bind", lambda: None)
    monkeypatch.setattr(Worker, "_begun", lambda *_: 1)
    digest = model_digest(load_manifest(find_bundle("msan-s")))
    return WorkerOptions(loading=LoadOptions(backend="ort-cpu"), model_sha256=digest)


def batch(*tasks: Task) -> dict[str, list[Any]]:
    names = ("number", "source", "target", "comparison")
    return {name: [getattr(task, name) for task in tasks] for name in names}


# Options


@pytest.mark.parametrize(("text", "expected"), [("4", (4, 4)), ("1:8", (1, 8)), (" 2:2 ", (2, 2))])
def test_ranges_of_workers(text: str, expected: tuple[int, int]) -> None:
    assert worker_range_from_text(text) == expected


@pytest.mark.parametrize("text", ["0", "3:2", "many", "1:", "-1", "1:2:3"])
def test_what_is_no_range_of_workers(text: str) -> None:
    with pytest.raises(ClusterError, match="is no number of workers"):
        worker_range_from_text(text)


def test_ray_client_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"ray://head:10001 is Ray Client's"):
        RayOptions(address="ray://head:10001")


def test_without_the_extra_it_is_named(deblur: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pictures(tmp_path / "in", ["a.png"])
    monkeypatch.setitem(sys.modules, "ray", None)
    finished = deblur(tmp_path / "in", "-o", tmp_path / "out", "--ray", "local")
    assert finished.code == 2
    assert "error: ray is not installed. Install it with: pip install 'msan[ray]'" in finished.err
    monkeypatch.setitem(sys.modules, "fsspec", None)
    open_store.cache_clear()
    with pytest.raises(MissingExtraError, match=r"fsspec is not installed. Install it with: pip install 'msan\[ray\]'"):
        open_store("memory")


def test_addresses_need_ray(deblur: Command, tmp_path: Path) -> None:
    finished = deblur("s3://bucket/in", "-o", tmp_path)
    assert finished.code == 2
    assert "error: s3://bucket/in needs --ray" in finished.err
    assert not is_address(r"C:\pictures")
    assert not is_address("pictures/a.png")


def test_a_cluster_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    make_pictures(tmp_path / "in", ["a.png"])
    command = [sys.executable, "-c", "from msan_runtime.cli import main; main()", "deblur", tmp_path / "in"]
    # "auto" would take any cluster that this machine happens to have.
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        command += ["-o", tmp_path / "out", "--ray", address]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"error: no Ray cluster at {address}: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["head", "head:", "head:port", "10.0.0.1:1234567", ":", "a b:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=r"is no address\. Give local, auto or the head's HOST:PORT"):
        RayOptions(address=address)


@pytest.mark.parametrize(
    ("address", "head"),
    [("10.0.0.1:6379", ("10.0.0.1", 6379)), ("[::1]:1", ("::1", 1)), ("auto", None), ("local", None)],
)
def test_the_head_of_an_address(address: str, head: tuple[str, int] | None) -> None:
    assert RayOptions(address=address).head == head


def test_a_head_that_falls_silent_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = server.getsockname()[:2]
        with watched(head, every_s=0.01):
            time.sleep(0.2)
            assert not caplog.text
            server.close()
            end = time.monotonic() + 20
            while not caplog.text and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(0.2)
    assert [record.getMessage() for record in caplog.records] == [
        f"the head of the cluster, {head[0]}:{head[1]}, no longer answers: Ray will end this run. "
        "What is done is kept: give the command again when the cluster is back"
    ]


class FakeRay:
    """Stands for the module, with the nodes that a test needs."""

    def __init__(self, *nodes: dict[str, float]) -> None:
        self._nodes = [{"Resources": node, "Alive": True} for node in nodes]

    def nodes(self) -> list[dict[str, Any]]:
        return [*self._nodes, {"Resources": {"CPU": 99.0, "GPU": 99.0}, "Alive": False}]


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([{"CPU": 8.0}], RayOptions(), Pool(fewest=1, most=1, gpus=0, cpus=8)),
        ([{"CPU": 8.0}, {"CPU": 4.0}], RayOptions(), Pool(fewest=1, most=3, gpus=0, cpus=4)),
        ([{"CPU": 8.0}], RayOptions(cpus=2), Pool(fewest=1, most=4, gpus=0, cpus=2)),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0}], RayOptions(), Pool(fewest=1, most=8, gpus=1, cpus=1)),
        ([{"CPU": 64.0, "GPU": 8.0}], RayOptions(cpus=16), Pool(fewest=1, most=4, gpus=1, cpus=16)),
        ([{"CPU": 64.0, "GPU": 1.0}], RayOptions(gpus=0.5), Pool(fewest=1, most=2, gpus=0.5, cpus=1)),
        ([{"CPU": 2.0}], RayOptions(workers=(2, 100)), Pool(fewest=2, most=100, gpus=0, cpus=1)),
        ([{"CPU": 8.0}], RayOptions(workers=(2, 2)), Pool(fewest=2, most=2, gpus=0, cpus=4)),
        ([{"CPU": 8.0}], RayOptions(workers=(3, 3)), Pool(fewest=3, most=3, gpus=0, cpus=2)),
        ([{"CPU": 8.0}, {"CPU": 4.0}], RayOptions(workers=(1, 6)), Pool(fewest=1, most=6, gpus=0, cpus=2)),
    ],
)
def test_pools_fit_the_nodes(nodes: list[dict[str, float]], asked: RayOptions, expected: Pool) -> None:
    assert plan_pool(FakeRay(*nodes), asked) == expected


def test_workers_for_whom_there_is_no_room_are_told(caplog: pytest.LogCaptureFixture) -> None:
    plan_pool(FakeRay({"CPU": 2.0}), RayOptions(workers=(2, 4)))
    assert not caplog.text
    plan_pool(FakeRay({"CPU": 2.0}), RayOptions(workers=(4, 4)))
    assert "there is room for 2 workers of 0 GPUs and 1 CPUs, not for 4" in caplog.text


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_what_is_no_number_of_gpus_or_cpus(number: float) -> None:
    for name in ("gpus", "cpus"):
        with pytest.raises(ClusterError, match=rf"--ray-{name} \S+ is no number of them"):
            replace(RayOptions(), **{name: number})


def test_options_of_a_cluster_need_one(deblur: Command, tmp_path: Path) -> None:
    make_pictures(tmp_path / "in", ["a.png"])
    for option in ("--ray-workers", "--ray-gpus", "--ray-cpus"):
        finished = deblur(tmp_path / "in", "-o", tmp_path / "out", option, "1")
        assert finished.code == 2
        assert f"error: {option} needs --ray. Give --ray local" in finished.err
    assert not (tmp_path / "out").exists()


def test_a_worker_that_fits_no_node(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ClusterError, match=r"no node has the 1 GPUs and 1 CPUs of a worker\. Ask for less"):
        plan_pool(FakeRay({"CPU": 2.0}), RayOptions(gpus=1))
    assert plan_pool(FakeRay({"CPU": 2.0}), RayOptions(gpus=1, address="auto")).most == 1
    assert "waiting for one that joins the cluster" in caplog.text


# Workers


def test_a_worker_reports_each_task(options: WorkerOptions, tmp_path: Path) -> None:
    make_pictures(tmp_path, ["a.png"])
    (tmp_path / "b.png").write_text("no picture")
    tasks = [
        Task(number=n, source=str(tmp_path / name), target=str(tmp_path / "out" / name))
        for n, name in enumerate(("a.png", "b.png"))
    ]
    columns = Worker(options, None)(batch(*tasks))
    assert columns["number"] == [0, 1]
    assert columns["error"] == ["", f"{tmp_path / 'b.png'} is not a JPEG, PNG, WebP or TIFF picture"]
    assert columns["target_bytes"] == [(tmp_path / "out" / "a.png").stat().st_size, 0]
    assert columns["backend"] == ["ort-cpu"] * 2
    assert not any(columns["fatal"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"visible": ("/no such folder/.msan-marker.0123456789abcdef.tmp",)}, "/no such folder is not seen there"),
        ({"visible": ("/no such folder",)}, "/no such folder is not seen there. Give folders that all nodes share"),
        ({"model_sha256": "b" * 64}, "the bundle msan-s is another model there"),
        ({"loading": LoadOptions(bundle="nothing")}, "no bundle at nothing"),
        ({"loading": LoadOptions(backend="nothing")}, "no backend 'nothing'"),
    ],
)
def test_what_is_wrong_with_a_node_ends_the_run(change: dict[str, Any], words: str, options: WorkerOptions) -> None:
    columns = Worker(replace(options, **change), None)(batch(Task(number=3, source="a", target="b")))
    assert columns["fatal"] == [True]
    assert words in columns["error"][0]


def test_a_batch_that_workers_died_of_is_not_begun(options: WorkerOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "_begun", lambda *_: worker.MOST_ATTEMPTS + 1)
    columns = Worker(options, None)(batch(Task(number=3, source="a.png", target="b.png")))
    assert columns["lost"] == [True]
    assert columns["error"] == ["a.png died of 4 workers: it may take more memory than a node has"]


def test_reports_travel_as_rows() -> None:
    report = Report(number=7, error="bad", seconds=1.5, node="a", backend="b", notes="c\nd")
    columns = columns_of([report])
    assert Report.of_row({name: values[0] for name, values in columns.items()}) == report


BOUND = """
import os, sys
from msan_runtime.cluster.cores import bind_to_cores
print(bind_to_cores(1), sorted(os.sched_getaffinity(0)), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux" or (os.cpu_count() or 1) < 2, reason="needs Linux and two cores")
def test_workers_take_different_cores(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BOUND]
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start() as first, start() as second:
        told = {process.stdout.readline() for process in (first, second) if process.stdout}
        for process in (first, second):
            process.communicate("")
    with start() as third:
        told.add(third.communicate("")[0])
    cores = sorted(os.sched_getaffinity(0))[:2]
    assert told == {f"[{core}] [{core}]\n" for core in cores}


# Stores and addresses


@pytest.fixture
def memory() -> Store:
    """An empty store in this process's memory."""
    pytest.importorskip("fsspec")
    open_store.cache_clear()
    store = open_store("memory")
    store._system.store.clear()  # pyright: ignore[reportPrivateUsage]
    return store


def test_a_store_lists_reads_and_writes(memory: Store) -> None:
    assert memory.kind("/in") is None
    assert memory.files("/in") == []
    memory.write("/in/day/a.png", b"abc")
    assert memory.kind("/in") == "directory"
    assert memory.kind("/in/day/a.png") == "file"
    (file,) = memory.files("/in")
    assert (file.path, file.size_bytes) == ("/in/day/a.png", 3)
    assert file == memory.file("/in/day/a.png")
    assert file.mtime_ns > 0
    assert memory.read(file.path) == b"abc"
    with pytest.raises(PictureError, match=r"cannot read memory:///in/b\.png: it is not there"):
        memory.read("/in/b.png")


def test_other_file_systems_write_beside_and_rename(memory: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "OBJECT_STORES", frozenset[str]())
    memory.write("/out/a.png", b"abc")
    assert [file.path for file in memory.files("/out")] == ["/out/a.png"]

    def full(*_: Any) -> None:
        raise OSError("full")

    monkeypatch.setattr(memory._system, "mv", full)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(PictureError, match=r"cannot write memory:///out/b\.png: full"):
        memory.write("/out/b.png", b"abc")
    assert [file.path for file in memory.files("/out")] == ["/out/a.png"]


def test_what_dead_workers_left_half_written_goes_after_an_hour(memory: Store) -> None:
    old, young = "/out/.msan-a.png.0123456789abcdef.tmp", "/out/.msan-b.png.0123456789abcdef.tmp"
    for path in (old, young, "/out/a.png", "/in/a.png"):
        memory.write(path, b"abc")
    before = datetime.now(tz=UTC) - timedelta(hours=1, seconds=1)
    for path in (old, "/out/a.png"):
        memory._system.store[path].created = before  # pyright: ignore[reportPrivateUsage]
    planned = plan_addresses(["memory:///in"], "memory:///out", naming=Naming())
    AddressLedger(planned, StoreJournal(memory, "/out", RUN, restart=False), skip_existing=False)
    assert [file.path for file in memory.files("/out") if ".msan-journal" not in file.path] == [young, "/out/a.png"]


def test_unknown_protocols_are_refused() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(PictureError, match="cannot open nothing:// addresses"):
        open_store("nothing")


def plan(*inputs: str, output: str = "memory:///out", **options: Any) -> list[tuple[str, str | None]]:
    planned = plan_addresses(inputs, output, naming=options.pop("naming", Naming()), **options)
    return [(job.target.as_posix(), job.problem) for job in planned.jobs]


def test_plans_keep_inner_paths_and_leave_out_results(memory: Store) -> None:
    for path in ("/in/a.png", "/in/day/b.JPG", "/in/notes.txt", "/in/sharp/a.png", "/c.webp"):
        memory.write(path, b"")
    assert plan("memory:///in", "memory:///c.webp", output="memory:///in/sharp") == [
        ("/in/sharp/a.png", None),
        ("/in/sharp/day/b.JPG", None),
        ("/in/sharp/c.webp", None),
    ]
    naming = Naming(template="{stem}-sharp{suffix}", picture_format="png")
    assert [target for target, _ in plan("memory:///c.webp", naming=naming)] == ["/out/c-sharp.png"]
    (_, problem), _ = plan("memory:///nothing", "memory:///c.webp")
    assert problem == "no file or folder memory:///nothing"


@pytest.mark.parametrize(
    ("inputs", "output", "words"),
    [
        (["memory:///nothing"], "memory:///out", "no file or folder memory:///nothing"),
        (["memory:///in", "memory:///other"], "memory:///out", "would both be written to"),
        (["memory:///in"], "memory:///in/", "memory:///in is an input. Give another folder as -o"),
        (["memory:///in"], "memory:///out.png", "memory:///out.png is one file. Give a folder as -o"),
    ],
)
def test_plans_that_are_refused(inputs: list[str], output: str, words: str, memory: Store) -> None:
    memory.write("/in/a.png", b"")
    memory.write("/other/a.png", b"")
    with pytest.raises(PictureError, match=words):
        plan(*inputs, output=output)


def test_the_journal_of_a_store_is_read_by_the_next_run(memory: Store) -> None:
    for name in ("a.png", "b.png", "c.png"):
        memory.write(f"/in/{name}", b"abc")

    def open_ledger(run: Run = RUN, *, restart: bool = False) -> tuple[StoreJournal, AddressLedger]:
        planned = plan_addresses(["memory:///in"], "memory:///out", naming=Naming())
        journal = StoreJournal(memory, planned.folder, run, restart=restart)
        return journal, AddressLedger(planned, journal, skip_existing=False)

    journal, ledger = open_ledger()
    tasks = [item for item in ledger if isinstance(item, Task)]
    assert [task.target for task in tasks] == [f"memory:///out/{name}" for name in ("a.png", "b.png", "c.png")]
    memory.write("/out/a.png", b"sharp")
    assert ledger.settle(tasks[0], Report(number=0, target_bytes=5)) == Ended()
    assert ledger.settle(tasks[1], Report(number=1, error="bad")) == Ended(error="bad")
    journal.close()

    journal, ledger = open_ledger()
    assert [item for item in ledger if isinstance(item, Ended)] == [Ended(kept=True)]
    journal.close()
    memory.write("/out/a.png", b"changed")
    journal, ledger = open_ledger()
    assert all(isinstance(item, Task) for item in ledger)
    journal.close()
    with pytest.raises(JournalError, match=r"memory:///out holds results of the model tiny"):
        open_ledger(replace(RUN, model_sha256="b" * 64))
    open_ledger(replace(RUN, model_sha256="b" * 64), restart=True)[0].close()
    assert len(memory.files("/out/.msan-journal")) == 3


def test_addresses_are_staged_by_the_worker(
    options: WorkerOptions, memory: Store, tmp_path: Path, deblur: Command
) -> None:
    make_pictures(tmp_path / "in", ["a.png", "b.jpg"])
    (tmp_path / "in" / "bad.png").write_text("no picture")
    names = ("a.png", "b.jpg", "bad.png", "gone.png")
    for name, data in contents(tmp_path / "in").items():
        memory.write(f"/in/{name}", data)
    tasks = [
        Task(
            number=n, source=f"memory:///in/{name}", target=f"memory:///out/{name}", comparison=f"memory:///out/{n}.png"
        )
        for n, name in enumerate(names)
    ]
    columns = Worker(options, None)(batch(*tasks))
    assert columns["error"] == [
        "",
        "",
        "memory:///in/bad.png is not a JPEG, PNG, WebP or TIFF picture",
        "cannot read memory:///in/gone.png: it is not there",
    ]
    assert deblur(tmp_path / "in", "-o", tmp_path / "out").code == 1
    for name, data in contents(tmp_path / "out").items():
        assert memory.read(f"/out/{name}") == data
    assert columns["comparison_bytes"] == [len(memory.read("/out/0.png")), len(memory.read("/out/1.png")), 0, 0]


def test_names_that_no_folder_can_hold_are_reported(memory: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.write("/in/a.png", b"")
    odd = replace(memory.file("/in/a.png"), path="/in/x//a.png")
    files: Callable[..., Any] = memory.files
    monkeypatch.setattr(memory, "files", lambda folder: [odd, *files(folder)])
    assert [problem for _, problem in plan("memory:///in")] == [
        "memory:///in/x//a.png has a name that no folder can hold",
        None,
    ]
