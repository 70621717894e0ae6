"""``msan bench``: its arithmetic against PyTorch's counter and formulas, its order of runs, its command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msan.network import MsanNetwork
from msan.spec import ModelSpec
from msan_runtime.attention import Attention
from msan_runtime.backends.base import Backend, TileLimits
from msan_runtime.bench import peak, watched
from msan_runtime.bench.competitors import BenchError, Entrant, Setup, opened, opener_named, rivals
from msan_runtime.bench.flops import network_flops
from msan_runtime.bench.folder import FolderTimes, measure_made_up_folder
from msan_runtime.bench.latency import check_size
from msan_runtime.bench.memory import measured_memory
from msan_runtime.bench.session import BenchOptions
from msan_runtime.bench.timing import Latency, interleaved, paired_ratio
from msan_runtime.bench.watched import WatchedBackend
from msan_runtime.bundle import open_bundle
from msan_runtime.contract import CONTRACT_VERSION, PictureArray
from msan_runtime.errors import BundleError, MissingExtraError, PictureError
from msan_runtime.manifest import Manifest

MSAN = Path(sys.executable).with_name("msan")


def manifest_of(spec: ModelSpec, attention: str = "global") -> Manifest:
    return Manifest(
        name=spec.name,
        spec=spec.to_dict(),
        attention=attention,
        contract_version=CONTRACT_VERSION,
        graphs=(),
        engines=(),
        files=(),
        versions={},
        provenance={},
    )


@pytest.mark.parametrize(
    ("spec", "size", "attention"),
    [
        (ModelSpec(), (64, 96), "global"),
        (ModelSpec(stages=2, base_channels=16, resblocks=3), (128, 72), "global"),
        (ModelSpec(stages=1, base_channels=8, resblocks=1), (8, 8), "global"),
        (ModelSpec(stages=3, base_channels=8, resblocks=2, attention=False), (40, 24), "global"),
        (ModelSpec(stages=2, base_channels=8, resblocks=1), (200, 136), "window:64"),
        (ModelSpec(stages=2, base_channels=8, resblocks=1), (40, 136), "window:80"),
    ],
)
def test_operations_are_counted_as_pytorch_counts_them(spec: ModelSpec, size: tuple[int, int], attention: str) -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    network = MsanNetwork(spec, Attention.parse(attention))
    # As matrix products: the counter does not know PyTorch's fused attention on the CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network(torch.zeros(1, 3, *size))
    counted = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    convolutions = sum(count for operation, count in counted.items() if "convolution" in operation)
    mine = network_flops(manifest_of(spec, attention), *size)
    assert mine.convolutions == convolutions
    assert mine.attention == sum(counted.values()) - convolutions
    assert mine.total == counter.get_total_flops()


def test_a_spec_that_does_not_say_enough_is_refused() -> None:
    manifest = Manifest(
        name="x",
        spec={"stages": 2},
        contract_version=CONTRACT_VERSION,
        graphs=(),
        engines=(),
        files=(),
        versions={},
        provenance={},
    )
    with pytest.raises(BundleError, match="has no base_channels"):
        network_flops(manifest, 8, 8)


def test_competitors_run_in_turns_and_the_first_round_does_not_count() -> None:
    now = [0.0]
    order: list[str] = []

    def call(name: str, *seconds: float) -> Callable[[], None]:
        left = iter(seconds)

        def run() -> None:
            order.append(name)
            now[0] += next(left)

        return run

    rounds: list[int] = []
    latencies = interleaved(
        {"a": call("a", 9, 1, 2, 3), "b": call("b", 9, 2, 2, 12)},
        3,
        on_round=lambda: rounds.append(len(order)),
        clock=lambda: now[0],
        rest=lambda _seconds: None,
    )
    assert all(set(order[start : start + 2]) == {"a", "b"} for start in (0, 2, 4, 6))
    assert rounds == [2, 4, 6, 8]
    assert latencies["a"].times_ms == (1000, 2000, 3000)
    assert latencies["b"].times_ms == (2000, 2000, 12000)
    assert paired_ratio(latencies["a"], latencies["b"]) == 0.5  # of 1/2, 2/2, 3/12: not the ratio of the medians


def test_each_competitor_follows_every_other_one_in_some_round() -> None:
    order: list[str] = []
    interleaved({name: lambda name=name: order.append(name) for name in "abcd"}, 40, rest=lambda _seconds: None)
    rounds = [order[start : start + 4] for start in range(0, len(order), 4)]
    followed = {pair for turn in rounds for pair in pairwise(turn)}
    assert len(followed) == 12


def test_percentiles_and_the_rate_follow_from_the_times() -> None:
    latency = Latency(times_ms=tuple(float(n) for n in range(100, 301)))
    figures = {"p50_ms": 200.0, "p90_ms": 280.0, "p99_ms": 298.0, "rounds": 201, "pictures_per_second": 5.0}
    assert latency.to_dict() == figures


def test_the_peak_is_the_fastest_multiplication(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(peak.time, "perf_counter", lambda: next(moments))
    multiply = peak.MatrixMultiply(side=10)
    for _ in range(3):
        multiply.run()
    assert multiply.flops_per_second == 2 * 10**3 / 2.0


class LazyBackend(Backend):
    """Takes 1 second of a clock a tile, and is a tile behind, as a GPU's backend is."""

    name, device, limits = "lazy", "clock", TileLimits(area_px=10**6)

    def __init__(self, clock: list[float]) -> None:
        self._clock = clock
        self.closed = False

    def infer(self, tiles: PictureArray) -> PictureArray:
        self._clock[0] += len(tiles)
        return 255 - tiles

    def infer_many(self, tiles: Iterable[PictureArray]) -> Iterator[PictureArray]:
        held: PictureArray | None = None
        for batch in tiles:
            if held is not None:
                yield self.infer(held)
            held = batch
        if held is not None:
            yield self.infer(held)

    def close(self) -> None:
        self.closed = True


def test_a_watched_backend_passes_on_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(watched.time, "perf_counter", lambda: clock[0])
    manifest = manifest_of(ModelSpec(stages=1, base_channels=8, resblocks=1))
    inner = LazyBackend(clock)
    backend = WatchedBackend(inner, manifest)

    def cut() -> Iterator[PictureArray]:
        for level in range(3):
            clock[0] += 10  # cutting is not the backend's time
            yield np.full((1, 8, 16, 3), level, np.uint8)

    results: list[int] = []
    for result in backend.infer_many(cut()):
        clock[0] += 100  # nor is what the caller does
        results.append(int(result[0, 0, 0, 0]))
    assert results == [255, 254, 253]
    assert (backend.seconds, backend.tiles) == (3.0, 3)
    assert backend.flops == 3 * network_flops(manifest, 8, 16).total
    backend.reset()
    assert backend.infer(np.zeros((2, 8, 8, 3), np.uint8)).min() == 255
    assert (backend.seconds, backend.tiles) == (2.0, 2)
    backend.close()
    assert inner.closed


def folder_times(**changes: Any) -> FolderTimes:
    values: dict[str, Any] = {
        "backend": "b (d)",
        "pictures": 4,
        "wall_seconds": 10.0,
        "decode_seconds": 3.0,
        "copy_seconds": 1.0,
        "infer_seconds": 8.0,
        "encode_seconds": 2.0,
        "waited_seconds": 0.5,
        "device_busy_seconds": None,
    }
    return FolderTimes(**values | changes)


def test_shares_of_a_folder_run_follow_from_its_times() -> None:
    assert folder_times().busy_share == 0.9
    assert folder_times().device_idle_share == pytest.approx(0.2)
    assert folder_times(device_busy_seconds=9.6).device_idle_share == pytest.approx(0.04)
    assert folder_times().to_dict()["pictures_per_second"] == 0.4


@pytest.fixture(scope="module")
def setup(tiny_bundle: Path, tiny: Any) -> Setup:
    return Setup(bundle=open_bundle(tiny_bundle), threads=1, checkpoint=tiny.path)


def test_a_folder_run_does_all_of_it(setup: Setup) -> None:
    times = measure_made_up_folder(setup.bundle, "ort-cpu", 3, 24, 40)
    assert times.pictures == 3
    assert times.backend.startswith("ort-cpu (CPU, ONNX Runtime")
    parts = (times.decode_seconds, times.copy_seconds, times.infer_seconds, times.encode_seconds)
    assert all(part > 0 for part in parts)
    assert times.copy_seconds + times.infer_seconds <= times.wall_seconds
    assert times.device_busy_seconds is None


def test_pytorch_is_found_through_its_entry_points() -> None:
    assert rivals() == (
        "onnxruntime",
        "onnxruntime-fp16",
        "openvino",
        "openvino-bf16",
        "pytorch",
        "pytorch-channels-last",
    )


@pytest.mark.parametrize(
    "name", ["onnxruntime", "onnxruntime-fp16", "openvino", "pytorch", "pytorch-channels-last", "msan:openvino"]
)
def test_every_competitor_does_the_same_work(name: str, setup: Setup) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (24, 40, 3), np.uint8)
    with opener_named("msan:ort-cpu")(setup) as reference, opener_named(name)(setup) as entrant:
        assert entrant.same_weights
        result = entrant.run(picture)
        assert result.dtype == np.uint8
        assert np.abs(result.astype(int) - reference.run(picture)).max() <= 1
        assert not np.array_equal(result, picture)


def test_without_its_checkpoint_pytorch_runs_an_untrained_network(setup: Setup) -> None:
    other = Setup(bundle=setup.bundle, threads=1)
    with opener_named("pytorch")(other) as entrant:
        assert not entrant.same_weights
        assert entrant.run(np.zeros((16, 24, 3), np.uint8)).shape == (16, 24, 3)


def test_a_checkpoint_of_another_network_is_refused(setup: Setup, make_checkpoint: Any) -> None:
    other = make_checkpoint(ModelSpec(stages=1, base_channels=8, resblocks=1))
    wrong = Setup(bundle=setup.bundle, threads=1, checkpoint=other.path)
    with pytest.raises(BenchError, match="is a msan-1x8c1r network, the bundle's is msan-2x8c1r"):
        opener_named("pytorch")(wrong).__enter__()


def missing(_setup: Setup) -> AbstractContextManager[Entrant]:
    raise MissingExtraError("openvino", "openvino")


def test_what_is_not_installed_is_left_out_unless_asked_for(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    wanted = {"onnxruntime": opener_named("onnxruntime"), "openvino": missing}
    with opened(wanted, setup, ()) as entrants:
        assert list(entrants) == ["onnxruntime"]
    assert "openvino is left out: openvino is not installed. Install it with: pip install" in caplog.text
    with pytest.raises(MissingExtraError), opened(wanted, setup, ("openvino",)):
        pass
    with pytest.raises(BenchError, match="nothing here can run this bundle"), opened({"openvino": missing}, setup, ()):
        pass


def test_memory_is_measured_in_a_process_of_its_own(setup: Setup) -> None:
    held = bytearray(600 * 2**20)
    held[::4096] = b"x" * len(held[::4096])  # this process's memory is not the competitor's
    memory = measured_memory("onnxruntime", setup, 64, 64)
    assert memory.rss_bytes is not None
    assert 30 * 2**20 < memory.rss_bytes < 500 * 2**20
    assert memory.device_bytes is None or memory.device_bytes >= 0


def test_a_process_that_fails_gives_its_last_words(setup: Setup, tmp_path: Path) -> None:
    lost = Setup(bundle=setup.bundle, threads=1, checkpoint=tmp_path / "gone.safetensors")
    with pytest.raises(BenchError, match=r"the memory of pytorch at 64×64 could not be measured: .*no checkpoint file"):
        measured_memory("pytorch", lost, 64, 64)


def test_sizes_that_some_competitor_cannot_run_are_refused(setup: Setup) -> None:
    with pytest.raises(BenchError, match="multiples of 8"):
        check_size(setup, 360, 641, None)
    with pytest.raises(BenchError, match=r"may take \d+ GiB, and this machine has 8"):
        check_size(setup, 4320, 7680, 8 * 2**30)
    check_size(setup, 360, 640, 8 * 2**30)


def test_options_that_nothing_can_be_measured_with_are_refused(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [{"rounds": 0}, {"count": -1}, {"sizes": ()}]
    for changes in wrong:
        with pytest.raises(BenchError, match="nothing can be measured with"):
            BenchOptions(**changes)
    with pytest.raises(BenchError, match="no checkpoint file at"):
        BenchOptions(checkpoint=tmp_path / "x.pth")
    with pytest.raises(BenchError, match="no folder"):
        BenchOptions(pictures=tmp_path / "x")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(MSAN), "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_measures_all_of_it(tiny_bundle: Path, tiny: Any, tmp_path: Path) -> None:
    figures, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    options = ("--sizes", "16x24,24x16", "--rounds", 2, "--count", 2, "--no-memory", "--checkpoint", tiny.path)
    done = run("--bundle", tiny_bundle, "--backend", "ort-cpu", *options, "--json", figures, "--plot", plot)
    assert done.returncode == 0, done.stderr
    body = json.loads(figures.read_text())
    assert [(size["height"], size["width"]) for size in body["sizes"]] == [(16, 24), (24, 16)]
    first = body["sizes"][0]
    names = [row["name"] for row in first["competitors"]]
    assert names == ["msan:ort-cpu", "onnxruntime", "openvino", "pytorch", "pytorch-channels-last"]
    assert all(row["levels_apart"] <= 1 and row["latency"]["rounds"] == 2 for row in first["competitors"])
    assert set(first["ratios"]["msan:ort-cpu"]) == set(names[1:])
    row = first["competitors"][0]
    share = row["gflop"] * 1000 / row["latency"]["p50_ms"] / first["peak_gflop_per_second"]
    assert row["peak_share"] == pytest.approx(share, rel=0.05)
    assert [folder["pictures"] for folder in body["folders"].values()] == [2, 2]
    assert {"processor", "cores", "versions", "date"} <= set(body["machine"])
    assert "pytorch-channels-last" in done.stdout
    assert "computing" in done.stdout
    with Image.open(plot) as picture:
        assert picture.format == "PNG"


def test_the_command_measures_a_folder_of_pictures(tiny_bundle: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(3):
        Image.new("RGB", (20, 12), (index, 0, 0)).save(pictures / f"{index}.png")
    before = {path: path.read_bytes() for path in pictures.iterdir()}
    figures = tmp_path / "bench.json"
    done = run("--bundle", tiny_bundle, "--backend", "ort-cpu", "--pictures", pictures, "--json", figures)
    assert done.returncode == 0, done.stderr
    body = json.loads(figures.read_text())
    assert body["sizes"] == []
    assert body["folders"]["pictures"]["pictures"] == 3
    assert {path: path.read_bytes() for path in pictures.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--against", "tensorflow"), "nothing to measure is called 'tensorflow'. There are: backends rtx"),
        (("--backend", "cpu"), "nothing to measure is called 'cpu'"),
        (("--sizes", "360"), "'360' is no size. Write HEIGHTxWIDTH"),
        (("--sizes", "100x100"), "multiples of 8"),
        (("--json", "no/such/folder.json"), "cannot write no/such/folder.json"),
        (("--plot", "bench.pdf"), "the name must end in .png"),
        (("--bundle", "no-bundle"), "no bundle at no-bundle"),
        (("--checkpoint", "no.pth"), "no checkpoint file at no.pth"),
        (("--pictures", "no-folder"), "no folder no-folder"),
        (("--backend", "tensorrt", "--against", "none"), "backend tensorrt:"),
    ],
)
def test_bad_input_is_a_sentence(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_an_empty_folder_is_a_sentence(tiny_bundle: Path, tmp_path: Path) -> None:
    from msan_runtime.bench.folder import measure_folder

    with pytest.raises(PictureError, match="no "):
        measure_folder(open_bundle(tiny_bundle), "ort-cpu", tmp_path)
