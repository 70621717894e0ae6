"""A folder with the files that the documents name, for the blocks that are run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.docs.blocks import ROOT

from msan.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def prepared(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``examples``, ``photo.jpg``, ``in.jpg``, ``holiday/``, ``clip.mp4`` and ``MSAN.pth``, all of them small."""
    import torch

    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(ROOT / "examples", folder / "examples")
    with Image.open(folder / "examples" / "lighthouse-blurred.png") as picture:
        small = picture.convert("RGB").resize((240, 160))
    (folder / "holiday" / "beach").mkdir(parents=True)
    for name in ("photo.jpg", "in.jpg", "holiday/first.jpg", "holiday/beach/second.jpg"):
        small.save(folder / name, quality=95)
    _write_clip(folder / "clip.mp4", np.asarray(small)[:96, :128])
    torch.save(tiny.state, folder / "MSAN.pth")
    return folder


@pytest.fixture
def workspace(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared files, as the working folder."""
    folder = tmp_path / "workspace"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


def _write_clip(path: Path, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    """Ten frames of a picture that moves, at 10 frames a second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = pixels.shape[1], pixels.shape[0], "yuv420p"
        for shift in range(10):
            frame = av.VideoFrame.from_ndarray(np.roll(pixels, shift, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
