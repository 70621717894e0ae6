"""Event files of TensorBoard: each scalar and picture is on disk once it is told."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from msan_runtime.errors import MissingExtraError

__all__ = ["EventFile"]

# TensorBoard takes the files of a folder in the order of their names.
NAME = "events.out.tfevents.{nanoseconds}.msan"


class EventFile:
    """Appends to a new event file in ``folder``.

    PyTorch's SummaryWriter writes in a thread, which loses what is in its queue when the process is killed,
    and prints a traceback when the disk is full.

    Raises:
        MissingExtraError: if TensorBoard is not installed.
        OSError: if the file cannot be written; so do its methods.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """Begin the file; earlier files' events of ``first_step`` and later no longer count."""
        try:
            # Its classes are made when it is imported.
            self._protocol = import_module("tensorboard.compat.proto.event_pb2")
        except ImportError as error:
            raise MissingExtraError("tensorboard", "train") from error
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME.format(nanoseconds=time.time_ns())
        self._write(first_step, file_version="brain.Event:2")
        self._write(first_step, session_log={"status": self._protocol.SessionLog.START})

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Tell numbers by their tags."""
        told = [{"tag": tag, "simple_value": value} for tag, value in values.items()]
        self._write(step, summary={"value": told})

    def add_picture(self, tag: str, picture: Tensor, step: int) -> None:
        """Tell a uint8 3×H×W picture."""
        png = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(png, "PNG")
        height, width = picture.shape[1:]
        image = {"height": height, "width": width, "colorspace": 3, "encoded_image_string": png.getvalue()}
        self._write(step, summary={"value": [{"tag": tag, "image": image}]})

    def _write(self, step: int, **content: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        event = self._protocol.Event(wall_time=time.time(), step=step, **content)
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        with self.path.open("ab") as file:
            file.write(record.getvalue())
