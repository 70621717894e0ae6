"""What tests of this room share: exports, ten seconds each, are made once for a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator

import onnx
import pytest

from msan.checkpoint import Checkpoint
from msan_export import bundle
from msan_export.acceptance import files, nodewise
from msan_export.onnx import onnx_from_checkpoint
from msan_export.source import Source
from msan_runtime.attention import Attention
from msan_runtime.contract import Io


def weights_digest(checkpoint: Source) -> str:
    """Of the weights themselves: tests change them without writing a file."""
    digest = hashlib.sha256()
    state = checkpoint.state if isinstance(checkpoint, Checkpoint) else checkpoint.module.state_dict()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


Exporter = Callable[..., onnx.ModelProto]


@pytest.fixture(scope="session")
def remembered_export() -> Exporter:
    """``onnx_from_checkpoint`` that exports weights once."""
    made: dict[tuple[str, Io, str], onnx.ModelProto] = {}

    def remembered(checkpoint: Source, *, io: Io, attention: Attention) -> onnx.ModelProto:
        key = (weights_digest(checkpoint), io, str(attention))
        if key not in made:
            made[key] = onnx_from_checkpoint(checkpoint, io=io, attention=attention)
        copied = onnx.ModelProto()
        copied.CopyFrom(made[key])
        return copied

    return remembered


@pytest.fixture(scope="session", autouse=True)
def one_export_for_a_checkpoint(remembered_export: Exporter) -> Generator[None]:
    """What is deployed, and what a failing graph is held against, is the same in every test of a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (bundle, files, nodewise):
            patch.setattr(module, "onnx_from_checkpoint", remembered_export)
        yield
