"""What tests of this room share: exports, ten seconds each, are made once for a checkpoint."""

from __future__ import annotations

from collections.abc import Generator

import onnx
import pytest

from msan.checkpoint import Checkpoint
from msan_export import nodewise
from msan_runtime.attention import Attention
from msan_runtime.contract import Io


@pytest.fixture(scope="session", autouse=True)
def one_export_for_a_checkpoint() -> Generator[None]:
    """The graph that a failing one is held against is the same in every test of a checkpoint."""
    export = nodewise.onnx_from_checkpoint
    made: dict[tuple[str, Io, str], onnx.ModelProto] = {}

    def remembered(checkpoint: Checkpoint, *, io: Io, attention: Attention) -> onnx.ModelProto:
        key = (checkpoint.sha256, io, str(attention))
        if key not in made:
            made[key] = export(checkpoint, io=io, attention=attention)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodewise, "onnx_from_checkpoint", remembered)
        yield
