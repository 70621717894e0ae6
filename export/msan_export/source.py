"""What is converted: a checkpoint of MSAN, or a network of another maker; and its modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from msan.checkpoint import Checkpoint, CheckpointError, find_checkpoint, load_checkpoint, network_from_checkpoint
from msan_export.foreign import ForeignNetwork, LoaderName, load_foreign
from msan_export.graph import DeployableForeign, DeployableMsan, PaddedNetwork
from msan_runtime.attention import DEFAULT_ATTENTION, GLOBAL, Attention
from msan_runtime.contract import Io
from msan_runtime.errors import MsanError

__all__ = ["Source", "attention_of", "computed", "deployable", "load_source", "reference_module"]

Source = Checkpoint | ForeignNetwork


def load_source(name: str, *, arch: str | None = None, loader: LoaderName | None = None) -> Source:
    """The checkpoint called ``name`` (a file or a shipped one), or with ``arch`` or ``loader`` another network's.

    Raises:
        CheckpointError, ForeignError, MissingExtraError: as :func:`msan.checkpoint.load_checkpoint` and
            :func:`msan_export.foreign.load_foreign`.
    """
    if arch is None and loader is None:
        return _msan(find_checkpoint(name))
    return load_foreign(Path(name), arch=arch, loader=loader)


def _msan(path: Path) -> Checkpoint:
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        if not path.is_file():
            raise
        hint = "Of a network of another maker say which: --arch MODULE:FACTORY, or --loader spandrel"
        raise CheckpointError(f"{error}. {hint}") from error


def attention_of(source: Source, asked: str | None) -> Attention:
    """The attention that was asked for, or the default; of other networks it is their own.

    Raises:
        MsanError: if attention was asked for of a network of another maker.
    """
    if isinstance(source, Checkpoint):
        return DEFAULT_ATTENTION if asked is None else Attention.parse(asked)
    if asked is not None:
        raise MsanError(f"--attention {asked} is a setting of MSAN alone: leave it out with --arch or --loader")
    return GLOBAL


def reference_module(source: Source, attention: Attention) -> nn.Module:
    """The network in PyTorch, FP32, in evaluation mode, for sides that are multiples of 8."""
    if isinstance(source, Checkpoint):
        return network_from_checkpoint(source, attention)
    return PaddedNetwork(source.module, source.multiple)


def computed(module: nn.Module, blurred: Tensor) -> tuple[Sequence[Tensor], Tensor]:
    """Outputs of the sub-networks, none if it is not MSAN; and the picture, not clamped. N×3×H×W each."""
    stages = getattr(module, "stage_outputs", None)
    if stages is None:
        return (), module(blurred)
    outputs: list[Tensor] = stages(blurred)
    return outputs, blurred + outputs[-1]


def deployable(source: Source, io: Io, attention: Attention) -> nn.Module:
    """The module that is exported."""
    if isinstance(source, Checkpoint):
        return DeployableMsan(network_from_checkpoint(source, attention), io)
    return DeployableForeign(source.module, io, source.multiple)
