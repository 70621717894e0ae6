"""An independent MSAN, random weights in the authors' layout, miniature pictures, and processes that train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from msan.degradation.blur import BlurSpec
from msan.spec import ModelSpec
from msan.training.recipe import TrainConfig

State = Mapping[str, Tensor]
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

RESBLOCK_LAYERS = (2, 4, 6, 8, 10)

# What a forked child does is what a fresh process does: nothing has run in its parent but imports.
SERVER = """
import json, os, resource, signal, sys, traceback
import tensorboard.compat.proto.event_pb2, tensorboard.summary.writer.record_writer
import torch, torch._dynamo
import msan.commands.train, msan.training.train
from msan_runtime.cli import main

for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child:
        os.setpgid(child, child)
        print(child, flush=True)
        continue
    os.setpgid(0, 0)
    signal.alarm(240)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{asked['name']}.{kind}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(asked["env"])
    if asked["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["largest_file"], resource.RLIM_INFINITY))
    sys.argv = ["msan", *asked["arguments"]]
    code = 0
    try:
        main()
    except SystemExit as exit:
        code = exit.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    # Taking the interpreter down takes a second with PyTorch in it.
    sys.stdout.flush()
    os._exit(code)
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These tensors are too small to share out: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_pictures() -> Callable[..., Path]:
    """Fills a folder with sharp pictures: ``make_pictures(folder, count, height=56, width=64, seed=0)``."""
    return _make_pictures


@pytest.fixture(scope="session")
def make_pairs() -> Callable[..., Path]:
    """Fills ``input`` and ``target`` of a folder with pairs: ``make_pairs(folder, count, height=40, ...)``."""
    return _make_pairs


@pytest.fixture(scope="session")
def sharp_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sharp pictures of 56×64 px."""
    return _make_pictures(tmp_path_factory.mktemp("sharp"), 3)


@pytest.fixture(scope="session")
def pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of 40×48 px."""
    return _make_pairs(tmp_path_factory.mktemp("pairs"), 2)


@pytest.fixture(scope="session")
def miniature() -> TrainConfig:
    """Nine steps of a tiny network; crops of 32 px, of 40 px before they are blurred."""
    return TrainConfig(
        spec=ModelSpec(stages=1, base_channels=4, resblocks=1),
        steps=9,
        batch=2,
        crop_px=32,
        validation_px=32,
        learning_rate=1e-3,
        warmup_steps=3,
        blur=BlurSpec(length_px=(1.0, 4.0), roll_px=0.0, zoom_px=0.0, instants=5),
        validate_every=3,
    )


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts the ``msan`` command in processes of its own, without waiting for PyTorch each time."""
    with Launcher(tmp_path_factory.mktemp("launcher")) as launcher:
        yield launcher


@pytest.fixture(scope="session")
def reference_outputs() -> Callable[[State, Tensor], list[Tensor]]:
    """All stages' outputs, first first, cropped to the picture; in the dtype of the picture."""
    return _outputs


@pytest.fixture(scope="session")
def published_state() -> Callable[..., dict[str, Tensor]]:
    """Random weights: ``published_state(stages=4, base_channels=32, resblocks=4, attention=True, seed=0)``."""
    return _random_state


def _outputs(state: State, blurred: Tensor) -> list[Tensor]:
    state = {name: tensor.to(blurred.dtype) for name, tensor in state.items()}
    height, width = blurred.shape[2:]
    padded = F.pad(blurred - 0.5, (0, -width % 8, 0, -height % 8), mode="replicate")
    outputs: list[Tensor] = []
    code = torch.zeros(())
    stage = 1
    while f"edcoder{stage}.layer1.weight" in state:
        seen = torch.cat((padded, outputs[-1]), 1) if outputs else padded
        output, code = _sub_network(state, f"edcoder{stage}", seen, code)
        outputs.append(output)
        stage += 1
    return [output[:, :, :height, :width] for output in outputs]


def _sub_network(state: State, stage: str, seen: Tensor, previous_code: Tensor) -> tuple[Tensor, Tensor]:
    """The 3-channel output, and the encoder's output before attention (the code)."""
    full = _resblocks(state, f"{stage}.layer2", _conv(state, f"{stage}.layer1", seen, padding=1))
    half = _resblocks(state, f"{stage}.layer4", _conv(state, f"{stage}.layer3", full, stride=2, padding=1))
    quarter = _conv(state, f"{stage}.layer5", half, stride=2, padding=1) + previous_code
    code = _resblocks(state, f"{stage}.layer6", quarter)
    attended = _attention(state, f"{stage}.sa", code) if f"{stage}.sa.gamma" in state else code
    up = _resblocks(state, f"{stage}.layer8", _deconv(state, f"{stage}.layer7", attended) + half)
    up = _resblocks(state, f"{stage}.layer10", _deconv(state, f"{stage}.layer9", up) + full)
    return _conv(state, f"{stage}.layer11", up, padding=1), code


def _resblocks(state: State, layer: str, x: Tensor) -> Tensor:
    index = 0
    while f"{layer}.{index}.conv1.weight" in state:
        inner = _conv(state, f"{layer}.{index}.conv1", x, padding=1).clamp(min=0)
        x = x + _conv(state, f"{layer}.{index}.conv2", inner, padding=1)
        index += 1
    return x


def _attention(state: State, name: str, x: Tensor) -> Tensor:
    """Eqs. 2 and 3, with the N×N matrix written out."""
    batch, channels = x.shape[:2]
    small = _conv(state, f"{name}.gconv", x, stride=2, padding=1, groups=channels)
    query, key, value = (_conv(state, f"{name}.{part}_conv", small).flatten(2) for part in ("query", "key", "value"))
    energy = torch.matmul(query.transpose(1, 2), key)
    weight = torch.exp(energy - energy.amax(2, keepdim=True))
    attention = weight / weight.sum(2, keepdim=True)
    mixed = torch.matmul(value, attention.transpose(1, 2)).reshape(batch, channels, *small.shape[2:])
    return state[f"{name}.gamma"] * _deconv(state, f"{name}.degconv", mixed, groups=channels) + x


def _conv(state: State, name: str, x: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding, 1, groups)


def _deconv(state: State, name: str, x: Tensor, *, groups: int = 1) -> Tensor:
    return F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], 2, 1, 0, groups)


def _random_state(
    *, stages: int = 4, base_channels: int = 32, resblocks: int = 4, attention: bool = True, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for stage in range(1, stages + 1):
        shapes = _sub_network_shapes(6 if stage > 1 else 3, base_channels, resblocks, attention=attention)
        for name, shape in shapes.items():
            fan_in = max(1, shape[1] * shape[2] * shape[3]) if len(shape) == 4 else 100
            # So that activations neither die nor grow along 4 stages, and residuals are of a picture's size.
            scale = 0.5 if ".conv" in name else 0.25 if name.startswith("layer11") else 1.0
            state[f"edcoder{stage}.{name}"] = torch.randn(shape, generator=generator) * scale / fan_in**0.5
        if attention:
            state[f"edcoder{stage}.sa.gamma"] = torch.tensor([0.8])
    return state


def _sub_network_shapes(inputs: int, c: int, resblocks: int, *, attention: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of a sub-network's tensors under the published keys; of each weight, then its bias."""
    weights: dict[str, tuple[int, ...]] = {
        "layer1": (c, inputs, 3, 3),
        "layer3": (2 * c, c, 3, 3),
        "layer5": (4 * c, 2 * c, 3, 3),
        "layer7": (4 * c, 2 * c, 4, 4),
        "layer9": (2 * c, c, 4, 4),
        "layer11": (3, c, 3, 3),
    }
    for layer, width in zip(RESBLOCK_LAYERS, (c, 2 * c, 4 * c, 2 * c, c), strict=True):
        for index in range(resblocks):
            for conv in ("conv1", "conv2"):
                weights[f"layer{layer}.{index}.{conv}"] = (width, width, 3, 3)
    if attention:
        weights |= {f"sa.{part}_conv": (4 * c, 4 * c, 1, 1) for part in ("query", "key", "value")}
        weights |= {"sa.gconv": (4 * c, 1, 3, 3), "sa.degconv": (4 * c, 1, 4, 4)}
    shapes: dict[str, tuple[int, ...]] = {"sa.gamma": (1,)} if attention else {}
    for name, shape in weights.items():
        outputs = shape[1] if name in ("layer7", "layer9") else shape[0]
        shapes |= {f"{name}.weight": shape, f"{name}.bias": (outputs,)}
    return shapes


def _blocks(height: int, width: int, seed: int) -> Pixels:
    """Random blocks of 4×4 px, whose edges blur."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
    return blocks.repeat(4, 0).repeat(4, 1)[:height, :width]


def _make_pictures(folder: Path, count: int, *, height: int = 56, width: int = 64, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(_blocks(height, width, 100 * seed + index)).save(folder / f"{index:03d}.png")
    return folder


def _make_pairs(folder: Path, count: int, *, height: int = 40, width: int = 48, seed: int = 0) -> Path:
    """The blurred one is the mean of the sharp one over five shifts to the right."""
    _make_pictures(folder / "target", count, height=height, width=width, seed=seed + 50)
    (folder / "input").mkdir()
    for file in (folder / "target").iterdir():
        with Image.open(file) as image:
            sharp = np.asarray(image)
        blurred = np.mean([np.roll(sharp, shift, 1) for shift in range(5)], 0)
        Image.fromarray(blurred.astype(np.uint8)).save(folder / "input" / file.name)
    return folder


class Launched:
    """A process of the ``msan`` command."""

    def __init__(self, launcher: Launcher, pid: int, name: str) -> None:
        self.launcher = launcher
        self.pid = pid
        self.name = name

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.launcher.folder.joinpath(f"{self.name}.out").read_text()

    @property
    def errors(self) -> str:
        """What it has printed to stderr so far."""
        return self.launcher.folder.joinpath(f"{self.name}.err").read_text()

    def send(self, number: int) -> None:
        """Send a signal to it and its children, as a terminal does."""
        os.killpg(self.pid, number)

    def wait(self) -> int:
        """Its exit code, or the negative number of the signal that ended it."""
        return self.launcher.ask({"wait": self.pid})


class Launcher:
    """A process that has PyTorch loaded and forks one that runs ``msan`` whenever it is asked to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started = 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.communicate()

    def start(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None, largest_file: int | None = None
    ) -> Launched:
        """Start ``msan`` with these arguments; a file that grows over ``largest_file`` bytes is refused."""
        self.started += 1
        name = f"{self.started}"
        asked = {"name": name, "arguments": [str(a) for a in arguments], "env": dict(env or {})}
        for suffix in ("out", "err"):
            (self.folder / f"{name}.{suffix}").touch()
        return Launched(self, self.ask({**asked, "largest_file": largest_file}), name)

    def ask(self, question: Mapping[str, object]) -> int:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(question) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())
