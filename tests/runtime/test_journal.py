"""The journal: what counts as done, torn lines, other models and settings, and one run at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from msan_runtime.jobs import Job
from msan_runtime.journal import JOURNAL_NAME, Journal, JournalError, Run, SourceState, model_digest, recorded_results
from msan_runtime.manifest import BundleFile, EngineEntry, GraphEntry, Manifest, Profile

RUN = Run(model="tiny", model_sha256="a" * 64, settings=MappingProxyType({"--quality": None, "--compare": False}))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def make_job(tmp_path: Path, out: Path) -> Callable[[str], Job]:
    """A maker of jobs whose source and result are there."""

    def make(name: str) -> Job:
        job = Job(source=tmp_path / name, target=out / name)
        job.source.write_text("blurred")
        job.target.write_text("sharp")
        return job

    return make


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / JOURNAL_NAME).read_bytes().splitlines()]


def note(out: Path, *jobs: Job, run: Run = RUN) -> None:
    with Journal.open(out, run) as journal:
        for job in jobs:
            journal.note_done(job, SourceState.of(job.source))


def is_done(out: Path, job: Job, run: Run = RUN) -> bool:
    with Journal.open(out, run) as journal:
        return journal.is_done(job, SourceState.of(job.source))


def test_what_was_noted_is_done_in_the_next_run(out: Path, make_job: Callable[[str], Job]) -> None:
    done, other = make_job("a.png"), make_job("b.png")
    note(out, done)
    assert is_done(out, done)
    assert not is_done(out, other)


def test_a_line_holds_what_it_takes_to_check_a_file(out: Path, make_job: Callable[[str], Job]) -> None:
    job = make_job("a.png")
    note(out, job)
    header, line = lines(out)
    assert header == {
        "journal": 1,
        "model": "tiny",
        "model_sha256": "a" * 64,
        "settings": {"--quality": None, "--compare": False},
    }
    assert line == {
        "source": "../a.png",
        "bytes": 7,
        "mtime_ns": job.source.stat().st_mtime_ns,
        "target": "a.png",
        "target_bytes": 5,
    }


@pytest.mark.parametrize(
    "change", ["source size", "source time", "target size", "no target", "comparison size", "no comparison"]
)
def test_what_changed_since_is_not_done(change: str, out: Path, make_job: Callable[[str], Job]) -> None:
    job = replace(make_job("a.png"), comparison=out / "a.compare.png")
    (out / "a.compare.png").touch()
    note(out, job)
    assert is_done(out, job)
    stat = job.source.stat()
    match change:
        case "source size":
            job.source.write_text("other")
            os.utime(job.source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        case "source time":
            os.utime(job.source, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
        case "target size":
            job.target.write_text("cut")
        case "no target":
            job.target.unlink()
        case "comparison size":
            (out / "a.compare.png").write_text("half")
        case _:
            (out / "a.compare.png").unlink()
    assert not is_done(out, job)


def test_a_result_of_another_source_is_not_done(tmp_path: Path, out: Path, make_job: Callable[[str], Job]) -> None:
    job = make_job("a.png")
    note(out, job)
    other = tmp_path / "other" / "a.png"
    other.parent.mkdir()
    other.write_text("blurred")
    stat = job.source.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not is_done(out, replace(job, source=other))


def test_the_last_line_of_a_result_counts(out: Path, make_job: Callable[[str], Job]) -> None:
    job = make_job("a.png")
    note(out, job)
    first = SourceState.of(job.source)
    job.source.write_text("blurred anew")
    note(out, job)
    with Journal.open(out, RUN) as journal:
        assert journal.is_done(job, SourceState.of(job.source))
        assert not journal.is_done(job, first)


def test_inputs_and_results_may_be_moved_together(tmp_path: Path, make_job: Callable[[str], Job], out: Path) -> None:
    job = make_job("a.png")
    note(out, job)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    job.source.rename(moved / "a.png")
    out.rename(moved / "out")
    assert is_done(moved / "out", Job(source=moved / "a.png", target=moved / "out" / "a.png"))


def test_a_journal_cut_at_any_byte_is_read_and_goes_on(out: Path, make_job: Callable[[str], Job]) -> None:
    jobs = [make_job(f"{number}.png") for number in range(3)]
    note(out, *jobs)
    path = out / JOURNAL_NAME
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in sorted({*range(0, len(whole), 11), *(end + step for end in ends for step in (-2, -1, 0))}):
        path.write_bytes(whole[:cut])
        kept = max(sum(end <= cut for end in ends) - 1, 0)
        with Journal.open(out, RUN) as journal:
            states = [journal.is_done(job, SourceState.of(job.source)) for job in jobs]
            assert states == [number < kept for number in range(3)]
            for job in jobs[kept:]:
                journal.note_done(job, SourceState.of(job.source))
        assert path.read_bytes() == whole


def test_a_damaged_line_costs_its_own_file_only(out: Path, make_job: Callable[[str], Job]) -> None:
    jobs = [make_job(f"{number}.png") for number in range(3)]
    note(out, *jobs)
    rows = (out / JOURNAL_NAME).read_bytes().splitlines(keepends=True)
    rows[2] = b"\0" * (len(rows[2]) - 1) + b"\n"
    (out / JOURNAL_NAME).write_bytes(b"".join(rows))
    assert [is_done(out, job) for job in jobs] == [True, False, True]


def test_failures_are_noted_and_not_done(out: Path, make_job: Callable[[str], Job]) -> None:
    job = make_job("a.png")
    with Journal.open(out, RUN) as journal:
        journal.note_failed(job, "not a picture")
    assert lines(out)[1:] == [{"source": "../a.png", "error": "not a picture"}]
    assert not is_done(out, job)


def test_another_model_is_noticed(out: Path, make_job: Callable[[str], Job]) -> None:
    job = make_job("a.png")
    note(out, job)
    other = replace(RUN, model="large", model_sha256="b" * 64)
    words = (
        r"holds results of the model tiny \(aaaaaaaa\), this run has large \(bbbbbbbb\)\. Give --restart .* another -o"
    )
    with pytest.raises(JournalError, match=words):
        Journal.open(out, other)
    assert is_done(out, job)


def test_other_settings_are_noticed_and_named(out: Path, make_job: Callable[[str], Job]) -> None:
    job = make_job("a.png")
    note(out, job)
    other = replace(RUN, settings={"--quality": 80, "--compare": True})
    with pytest.raises(JournalError, match=r"--quality by default, now 80, --compare off, now on\. Give --restart"):
        Journal.open(out, other)
    assert is_done(out, job)


def test_a_restart_forgets(out: Path, make_job: Callable[[str], Job]) -> None:
    job = make_job("a.png")
    note(out, job)
    other = replace(RUN, model_sha256="b" * 64)
    with Journal.open(out, other, restart=True) as journal:
        assert not journal.is_done(job, SourceState.of(job.source))
    assert not is_done(out, job, other)
    assert list(recorded_results(out)) == [job.target]


def test_after_a_restart_the_new_results_count(out: Path, make_job: Callable[[str], Job]) -> None:
    first, second = make_job("a.png"), make_job("b.png")
    note(out, first, second)
    with Journal.open(out, RUN, restart=True) as journal:
        journal.note_done(second, SourceState.of(second.source))
    assert [is_done(out, job) for job in (first, second)] == [False, True]


def test_a_journal_without_results_binds_nobody(out: Path) -> None:
    Journal.open(out, RUN).close()
    Journal.open(out, replace(RUN, model_sha256="b" * 64)).close()
    Journal.open(out, replace(RUN, model_sha256="b" * 64)).close()
    assert [line["model_sha256"] for line in lines(out)] == ["a" * 64, "b" * 64]


def test_what_was_started_is_known_as_a_result_and_not_done(out: Path, make_job: Callable[[str], Job]) -> None:
    job = replace(make_job("a.png"), comparison=out / "a.compare.png")
    with Journal.open(out, RUN) as journal:
        journal.note_started(job)
    (out / "a.compare.png").touch()
    assert not is_done(out, job)
    assert list(recorded_results(out)) == [out / "a.png", out / "a.compare.png"]


def test_a_journal_of_another_version_is_refused(out: Path, make_job: Callable[[str], Job]) -> None:
    note(out, make_job("a.png"))
    path = out / JOURNAL_NAME
    path.write_bytes(path.read_bytes().replace(b'"journal": 1', b'"journal": 2'))
    with pytest.raises(JournalError, match="written by another version of msan"):
        Journal.open(out, RUN)


def test_two_runs_into_one_folder_are_refused(out: Path) -> None:
    with Journal.open(out, RUN), pytest.raises(JournalError, match=r"another run is writing to .*out"):
        Journal.open(out, RUN)
    Journal.open(out, RUN).close()


HOLD = """
import sys
from pathlib import Path
from msan_runtime.journal import Journal, Run
journal = Journal.open(Path(sys.argv[1]), Run(model="tiny", model_sha256="a" * 64))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_run_leaves_no_lock(out: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(JournalError, match="another run"):
            Journal.open(out, RUN)
        holder.kill()
    Journal.open(out, RUN).close()


def test_a_file_system_without_locks_is_announced(
    out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(_: int) -> bool:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("msan_runtime.journal.try_lock", no_locks)
    Journal.open(out, RUN).close()
    assert "cannot be locked (Operation not supported): start no second run into it" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
def test_names_that_are_not_unicode_are_noted(out: Path, make_job: Callable[[str], Job]) -> None:
    job = make_job(os.fsdecode(b"caf\xe9.png"))
    note(out, job)
    assert is_done(out, job)
    assert list(recorded_results(out)) == [job.target]


def test_recorded_results_are_those_of_the_journal(out: Path, make_job: Callable[[str], Job]) -> None:
    assert list(recorded_results(out)) == []
    comparison = out / "b.compare.png"
    comparison.touch()
    note(out, make_job("a.png"), replace(make_job("b.png"), comparison=comparison))
    with (out / JOURNAL_NAME).open("ab") as file:
        file.write(b'{"source": "../c.png", "error": "bad"}\n{"target": "d')
    assert list(recorded_results(out)) == [out / "a.png", out / "b.png", comparison]


def test_the_digest_of_a_model_is_of_its_graphs() -> None:
    def manifest(*hashes: str, engine: bool = False) -> Manifest:
        files = [BundleFile(path=f"{i}.onnx", size_bytes=1, sha256=sha256) for i, sha256 in enumerate(hashes)]
        profile = Profile(min=(1, 8, 8), opt=(1, 8, 8), max=(1, 8, 8))
        engines = EngineEntry(
            path="e.engine",
            flavour="tensorrt-rtx",
            flavour_version="1",
            compute_capabilities=("8.6",),
            profile=profile,
            precision="fp16",
            layer_types={},
            graph="0.onnx",
        )
        return Manifest(
            name="tiny",
            spec={},
            contract_version=1,
            graphs=tuple(GraphEntry(path=file.path, precision="fp32", io="uint8", opset=23) for file in files),
            engines=(engines,) if engine else (),
            files=(*files, *([BundleFile(path="e.engine", size_bytes=1, sha256="e" * 64)] if engine else [])),
            versions={},
            provenance={},
        )

    plain = model_digest(manifest("1" * 64, "2" * 64))
    assert len(plain) == 64
    assert model_digest(manifest("1" * 64, "2" * 64, engine=True)) == plain
    assert model_digest(manifest("1" * 64, "3" * 64)) != plain
