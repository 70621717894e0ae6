"""The folder of a run: whole files or none, and no other run's."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from msan.checkpoint import CheckpointError, load_checkpoint
from msan.degradation.blur import BlurSpec
from msan.network import MsanNetwork
from msan.spec import ModelSpec
from msan.training.recipe import TrainConfig
from msan.training.run_folder import RunFolder, RunFolderError, read_log

WRITERS: dict[str, Callable[[RunFolder], None]] = {
    "state.pt": lambda folder: folder.save_state({"step": 4}),
    "last.safetensors": lambda folder: folder.save_weights(folder.last, {"a": torch.zeros(2)}, {}),
    "log.jsonl": lambda folder: folder.trim_log(0),
}
PRINTS = "".join(f"{index:08x}" for index in range(300))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def begin(folder: RunFolder, config: TrainConfig, *, samples_a_step: int = 2, fingerprint: str = PRINTS) -> None:
    folder.open(config, samples_a_step=samples_a_step, fingerprint=fingerprint)


def contents(folder: RunFolder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.path.iterdir()}


def started(folder: RunFolder, config: TrainConfig) -> None:
    begin(folder, config)
    folder.save_state({"step": 3, "network": {"a": torch.arange(4.0)}})


class TestOpening:
    def test_the_recipe_is_kept_as_it_was_given(self, folder: RunFolder, miniature: TrainConfig) -> None:
        begin(folder, miniature)
        kept = json.loads(folder.recipe.read_text())
        assert kept["config"] == json.loads(json.dumps(miniature.to_dict()))
        assert kept["data"] == {"samples_a_step": 2, "fingerprint": PRINTS}

    def test_what_a_killed_run_left_half_is_removed(self, folder: RunFolder, miniature: TrainConfig) -> None:
        started(folder, miniature)
        before = contents(folder)
        for name in (".state.pt.abc.tmp", ".best.safetensors.x1.tmp", ".log.jsonl.9.tmp"):
            (folder.path / name).write_bytes(b"half")
        begin(folder, miniature)
        assert contents(folder) == before

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"seed": 1}, "seed"),
            ({"loss": "mse", "batch": 1}, "loss, batch"),
            ({"spec": ModelSpec(stages=2, base_channels=4, resblocks=1)}, "network"),
            ({"blur": BlurSpec(length_px=(1.0, 5.0), instants=5)}, "blur"),
            ({"ema_decay": 0.5}, "ema_decay"),
            ({"init": "msan-s"}, "init"),
            ({"layout": "pairs"}, "layout"),
        ],
    )
    def test_another_recipe_is_refused_and_nothing_touched(
        self, changes: dict[str, Any], named: str, folder: RunFolder, miniature: TrainConfig
    ) -> None:
        started(folder, miniature)
        before = contents(folder)
        with pytest.raises(RunFolderError, match=f"holds a run with another {named}. .*choose another folder"):
            begin(folder, dataclasses.replace(miniature, **changes))
        assert contents(folder) == before

    @pytest.mark.parametrize(
        "changes",
        [
            {"steps": 99},
            {"steps": None, "epochs": 5.0},
            {"validate_every": 7},
            {"amp": "bf16"},
            {"torch_compile": True},
            {"channels_last": False},
        ],
    )
    def test_a_longer_or_faster_run_may_go_on(
        self, changes: dict[str, Any], folder: RunFolder, miniature: TrainConfig
    ) -> None:
        started(folder, miniature)
        changed = dataclasses.replace(miniature, **changes)
        begin(folder, changed)
        assert json.loads(folder.recipe.read_text())["config"] == json.loads(json.dumps(changed.to_dict()))
        assert folder.load_state() is not None

    def test_another_number_of_samples_a_step_is_refused(self, folder: RunFolder, miniature: TrainConfig) -> None:
        started(folder, miniature)
        with pytest.raises(RunFolderError, match="another number of samples a step"):
            begin(folder, miniature, samples_a_step=4)

    @pytest.mark.parametrize(
        ("differing", "refused"), [([], False), ([7], False), ([0, 9, 299], False), ([1, 2, 3, 4], True)]
    )
    def test_other_pictures_are_refused_but_for_a_few_repaired_ones(
        self, differing: list[int], refused: bool, folder: RunFolder, miniature: TrainConfig
    ) -> None:
        started(folder, miniature)
        other = "".join("f" * 8 if i in differing else PRINTS[8 * i : 8 * i + 8] for i in range(300))
        if not refused:
            begin(folder, miniature, fingerprint=other)
            return
        with pytest.raises(RunFolderError, match="another set of pictures"):
            begin(folder, miniature, fingerprint=other)

    @pytest.mark.parametrize("other", [PRINTS[8:], PRINTS + "0" * 8, ""])
    def test_more_or_fewer_pictures_are_refused(self, other: str, folder: RunFolder, miniature: TrainConfig) -> None:
        started(folder, miniature)
        with pytest.raises(RunFolderError, match="another set of pictures"):
            begin(folder, miniature, fingerprint=other)

    def test_a_single_picture_must_be_the_same(self, folder: RunFolder, miniature: TrainConfig) -> None:
        begin(folder, miniature, fingerprint="0" * 8)
        folder.save_state({})
        with pytest.raises(RunFolderError, match="another set of pictures"):
            begin(folder, miniature, fingerprint="1" * 8)

    def test_two_pictures_of_which_one_was_repaired_are_the_same_data(
        self, folder: RunFolder, miniature: TrainConfig
    ) -> None:
        begin(folder, miniature, fingerprint=PRINTS[:16])
        folder.save_state({})
        begin(folder, miniature, fingerprint=PRINTS[:8] + "f" * 8)
        with pytest.raises(RunFolderError, match="another set of pictures"):
            begin(folder, miniature, fingerprint="e" * 16)

    def test_a_run_that_saved_nothing_yet_may_be_begun_anew_with_another_recipe(
        self, folder: RunFolder, miniature: TrainConfig
    ) -> None:
        begin(folder, miniature)
        begin(folder, dataclasses.replace(miniature, seed=5), fingerprint=PRINTS[:8])
        assert json.loads(folder.recipe.read_text())["config"]["seed"] == 5

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": 3}', '{"config": {}, "data": {}}', "3"])
    def test_a_damaged_recipe_is_named_with_what_to_do(
        self, text: str, folder: RunFolder, miniature: TrainConfig
    ) -> None:
        folder.path.mkdir()
        folder.recipe.write_text(text)
        with pytest.raises(RunFolderError, match=r"train\.json is no recipe.*Choose another folder"):
            begin(folder, miniature)
        assert folder.recipe.read_text() == text

    @pytest.mark.parametrize("inside", [False, True])
    def test_a_folder_that_cannot_be_written_is_named(
        self, inside: bool, folder: RunFolder, miniature: TrainConfig
    ) -> None:
        folder.path.touch()
        place = RunFolder(folder.path / "deeper") if inside else folder
        with pytest.raises(RunFolderError, match=r"cannot write into .*run.* choose another folder"):
            begin(place, miniature)


class TestState:
    def test_a_state_comes_back_to_the_bit(self, folder: RunFolder, miniature: TrainConfig) -> None:
        begin(folder, miniature)
        assert folder.load_state() is None
        tensor = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
        folder.save_state({"step": 7, "network": {"a": tensor}, "monitor": {"window": [0.1]}})
        state = folder.load_state()
        assert state is not None
        assert torch.equal(state["network"].pop("a"), tensor)
        assert state == {"step": 7, "network": {}, "monitor": {"window": [0.1]}}

    @pytest.mark.parametrize("damage", ["empty", "text", "half"])
    def test_a_damaged_state_is_named_with_what_to_do(
        self, damage: str, folder: RunFolder, miniature: TrainConfig
    ) -> None:
        started(folder, miniature)
        data = folder.state.read_bytes()
        folder.state.write_bytes({"empty": b"", "text": b"no state\n" * 9, "half": data[: len(data) // 2]}[damage])
        with pytest.raises(CheckpointError, match=r"cannot resume from .*state\.pt .*Remove it to start") as raised:
            folder.load_state()
        # PyTorch's own words advise to load it unsafely.
        assert "weights_only" not in str(raised.value)

    def test_saved_weights_are_a_checkpoint(self, folder: RunFolder, miniature: TrainConfig) -> None:
        begin(folder, miniature)
        network = MsanNetwork(miniature.spec).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        folder.save_weights(folder.best, network.state_dict(), {"msan.step": "3"})
        checkpoint = load_checkpoint(folder.best)
        assert checkpoint.spec == miniature.spec
        assert checkpoint.metadata == {"msan.step": "3"}
        assert all(torch.equal(checkpoint.state[name], value) for name, value in network.state_dict().items())


class TestFullDisk:
    @pytest.mark.parametrize("name", WRITERS)
    def test_the_file_before_stays_and_no_half_one(
        self, name: str, folder: RunFolder, miniature: TrainConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started(folder, miniature)
        folder.append({"step": 1})
        folder.save_weights(folder.last, {"a": torch.ones(2)}, {})
        before = contents(folder)

        def full(path: Path, data: bytes) -> int:
            with path.open("wb") as file:
                file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(RunFolderError) as raised:
            WRITERS[name](folder)
        assert str(raised.value) == (
            f"cannot write {folder.path / name}: No space left on device. What was saved before is still there: "
            "make room, and the same command goes on"
        )
        assert raised.value.exit_code == 2
        assert contents(folder) == before

    def test_a_log_that_cannot_grow_is_named(self, folder: RunFolder, miniature: TrainConfig) -> None:
        begin(folder, miniature)
        folder.log.mkdir()
        with pytest.raises(RunFolderError, match=r"cannot write .*log\.jsonl: Is a directory. What was saved"):
            folder.append({"step": 1})


class TestLog:
    def test_lines_after_the_saved_step_are_taken_off(self, folder: RunFolder, miniature: TrainConfig) -> None:
        begin(folder, miniature)
        lines = [{"step": 1, "loss": 0.1}, {"step": 3, "loss": 1 / 3}, {"step": 3, "validation": {}}, {"step": 4}]
        for line in lines:
            folder.append(line)
        folder.trim_log(3)
        assert read_log(folder.log) == lines[:3]
        folder.append({"step": 5})
        assert read_log(folder.log) == [*lines[:3], {"step": 5}]

    def test_a_line_that_was_cut_short_is_left_out(self, folder: RunFolder, miniature: TrainConfig) -> None:
        begin(folder, miniature)
        folder.append({"step": 1})
        whole = folder.log.read_text()
        for cut in ('{"step": 2, "lo', "{", '{"step": 2', "2", "nul"):
            folder.log.write_text(whole + cut)
            assert read_log(folder.log) == [{"step": 1}]
            folder.trim_log(9)
            assert folder.log.read_text() == whole

    def test_without_a_log_there_is_nothing_to_trim(self, folder: RunFolder, miniature: TrainConfig) -> None:
        begin(folder, miniature)
        folder.trim_log(0)
        assert not folder.log.exists()


class TestOthersRuns:
    def test_a_folder_in_use_is_refused_until_it_is_closed(self, tmp_path: Path, miniature: TrainConfig) -> None:
        first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
        first.open(miniature, samples_a_step=2, fingerprint="0" * 8)
        with pytest.raises(RunFolderError, match="in use by another training"):
            second.open(miniature, samples_a_step=2, fingerprint="0" * 8)
        first.close()
        second.open(miniature, samples_a_step=2, fingerprint="0" * 8)

    def test_weights_of_a_run_without_a_state_do_not_stay(self, tmp_path: Path, miniature: TrainConfig) -> None:
        folder = RunFolder(tmp_path)
        for file in (folder.best, folder.last):
            file.write_bytes(b"of a run that was killed")
        folder.open(miniature, samples_a_step=2, fingerprint="0" * 8)
        assert not folder.best.exists()
        assert not folder.last.exists()

    def test_a_damaged_log_is_read_up_to_the_damage(self, tmp_path: Path) -> None:
        log = tmp_path / "log.jsonl"
        log.write_bytes(b'{"step": 1, "loss": 0.5}\n{"loss": 1}\n{"step": 3}\n')
        assert read_log(log) == [{"step": 1, "loss": 0.5}]
        log.write_bytes(b'{"step": 1, "loss": 0.5}\n\xff\xfe\n')
        assert read_log(log) == [{"step": 1, "loss": 0.5}]
