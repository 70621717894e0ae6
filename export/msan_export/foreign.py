"""Networks of other makers: a module from picture to picture, its weights, and what it needs of a picture's size."""

from __future__ import annotations

import hashlib
import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from msan.checkpoint import read_tensors
from msan_runtime.contract import SIZE_MULTIPLE
from msan_runtime.errors import MissingExtraError, MsanError

__all__ = ["ForeignError", "ForeignNetwork", "ForeignSpec", "LoaderName", "foreign_network", "load_foreign"]

LoaderName = Literal["spandrel"]

MULTIPLES = (8, 16, 32, 64, 128)
"""Tried in this order where a network does not say of what its sides must be multiples."""

OTHER_MULTIPLES = (6, 7, 10, 12, 14, 18, 20, 24, 28, 36, 40, 48, 56, 60, 72, 80, 84, 96, 100, 112, 120)
"""Tried where none of these works, to tell what ``size_multiple`` the module should say."""


class ForeignError(MsanError):
    """A network that cannot be loaded, or is none from picture to picture."""


@dataclass(frozen=True, kw_only=True)
class ForeignSpec:
    """What a manifest holds of a network that no ModelSpec describes.

    Attributes:
        name: for files, and for people.
        base_channels: the largest tensor within it, in channels at the picture's own size: what a run's memory is
            reckoned by, as that of MSAN is by its base channels.
    """

    name: str
    base_channels: int

    def to_dict(self) -> dict[str, int | bool]:
        """As plain JSON values. No attention of MSAN's is in it."""
        return {"base_channels": self.base_channels, "attention": False}


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Why a network does not keep a picture.

    Attributes:
        kind: it raised, it gave NaN or infinity, or what it gave is no picture of that size.
        words: what it raised, or gave.
    """

    kind: Literal["raised", "not finite", "no picture"]
    words: str


@dataclass(frozen=True, kw_only=True)
class ForeignNetwork:
    """A network of another maker with its weights.

    Attributes:
        path: the file of weights, and ``sha256`` of it.
        spec: what the manifest holds.
        arch: ``package.module:factory``, or the loader's name.
        module: N×3×H×W from 0 to 1 in and out, FP32, in evaluation mode; sides are multiples of ``multiple``.
        multiple: of a picture's sides.
    """

    path: Path
    sha256: str
    spec: ForeignSpec
    arch: str
    module: nn.Module
    multiple: int


def load_foreign(path: Path, *, arch: str | None = None, loader: LoaderName | None = None) -> ForeignNetwork:
    """Load the weights at ``path`` into the network that ``arch`` makes, or with ``loader``.

    ``arch`` is ``package.module:factory``; it is looked for in the current folder, too, and called without arguments.
    The module may say ``size_multiple``; if it does not, the smallest that works is found by trying.

    Raises:
        ForeignError: if there is no such factory or file, the weights do not fit, the network fails, or is none from
            a picture to one of the same size.
        CheckpointError: if the file cannot be read as weights.
        MissingExtraError: if the loader is not installed.
    """
    if (arch is None) == (loader is None):
        raise ForeignError("a network of another maker is named by --arch or by --loader, one of the two")
    if not path.is_file():
        raise ForeignError(f"no file of weights at {path}")
    if arch is None:
        module, multiple = _by_spandrel(path)
        return foreign_network(path, str(loader), module, multiple)
    module = _made(arch)
    _fill(module, read_tensors(path), path)
    return foreign_network(path, arch, module, getattr(module, "size_multiple", None))


def foreign_network(path: Path, arch: str, module: nn.Module, multiple: int | None) -> ForeignNetwork:
    """Look into ``module``: which multiples it takes, that it keeps the size, how large its tensors are.

    Raises:
        ForeignError: if it is no network from a picture to one of the same size.
    """
    module = module.float().eval()
    found = _checked_multiple(module, multiple, arch)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    spec = ForeignSpec(name=_name(arch, module), base_channels=_widest(module, found, arch))
    return ForeignNetwork(path=path, sha256=sha256, spec=spec, arch=arch, module=module, multiple=found)


def _made(arch: str) -> nn.Module:
    """What the factory makes."""
    place, _, factory = arch.partition(":")
    if not place or not factory:
        raise ForeignError(f"--arch is package.module:factory, not {arch!r}")
    with _from_here():
        make = _factory(arch, place, factory)
        try:
            module = make()
        except SystemExit as error:
            raise ForeignError(
                f"--arch {arch}: the factory ended the program (exit code {error.code}). "
                "Write one that gives the torch.nn.Module"
            ) from error
        except Exception as error:  # the factory is the user's own code
            raise ForeignError(f"--arch {arch}: the factory failed, {_words(error)}") from error
    if not isinstance(module, nn.Module):
        raise ForeignError(f"--arch {arch} gives a {type(module).__name__}, not a torch.nn.Module")
    return module


def _factory(arch: str, place: str, name: str) -> Callable[[], Any]:
    """The factory called ``name`` of the module ``place``, which is imported: user's code, too."""
    try:
        return getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ForeignError(f"--arch {arch} is not found: {error}") from error
    except SystemExit as error:
        raise ForeignError(
            f"--arch {arch}: importing {place} ended the program (exit code {error.code}). "
            "Put what it runs under if __name__ == '__main__'"
        ) from error
    except Exception as error:
        raise ForeignError(f"--arch {arch}: importing {place} failed, {_words(error)}") from error


def _words(error: BaseException) -> str:
    """The type of ``error`` and the beginning of its message, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")


@contextmanager
def _from_here() -> Any:
    """Modules of the current folder can be imported."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    state = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise ForeignError(f"the weights in {path} are not those of the network: {first}") from error


def _by_spandrel(path: Path) -> tuple[nn.Module, int]:
    """The restoration network that spandrel reads out of ``path``."""
    try:
        import spandrel  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "spandrel", "spandrel") from error
    try:
        found: Any = spandrel.ModelLoader(device="cpu").load_from_file(path)
    except Exception as error:  # spandrel's and PyTorch's own
        first = " ".join(str(error).split())[:300]
        raise ForeignError(f"spandrel cannot load {path}: {first}") from error
    channels = (found.input_channels, found.output_channels)
    if channels != (3, 3) or found.scale != 1:
        raise ForeignError(
            f"{path} holds a network of {channels[0]} to {channels[1]} channels and scale {found.scale}: "
            "only such from 3 to 3 channels that keep a picture's size can be deployed"
        )
    return found.model, max(1, found.size_requirements.multiple_of)


def _checked_multiple(module: nn.Module, multiple: object, arch: str) -> int:
    """A multiple that the network takes, and keeps."""
    if multiple is not None and (not isinstance(multiple, int) or not 1 <= multiple <= MULTIPLES[-1]):
        raise ForeignError(f"{arch}: size_multiple is a whole number from 1 to {MULTIPLES[-1]}, not {multiple!r}")
    asked = MULTIPLES if multiple is None else (multiple,)
    problems: list[_Problem] = []
    for one in asked:
        problem = _problem(module, one)
        if problem is None:
            return one
        problems.append(problem)
    if multiple is None:
        _tell_multiple(module, arch)
    raise _refusal(module, arch, asked, problems[0])


def _tell_multiple(module: nn.Module, arch: str) -> None:
    """Refuse a network that takes multiples that are none of those tried, with what it should say."""
    other = next((one for one in OTHER_MULTIPLES if _problem(module, one) is None), None)
    if other is not None:
        tried = ", ".join(map(str, MULTIPLES))
        raise ForeignError(
            f"{arch} takes pictures with sides that are multiples of {other}, but not of {tried}: "
            f"set size_multiple = {other} on the module"
        )


def _refusal(module: nn.Module, arch: str, asked: Sequence[int], problem: _Problem) -> ForeignError:
    """Why the network cannot be taken, of what it did at the first of the multiples that were ``asked``."""
    height, width = _sides(asked[0])
    if problem.kind == "raised":
        return _failed(arch, height, width, problem.words)
    if problem.kind == "not finite":
        state = module.state_dict().items()
        unfit = next((name for name, tensor in state if not torch.isfinite(tensor).all()), None)
        why = "" if unfit is None else f": tensor {unfit!r} of its weights holds NaN or infinity"
        return ForeignError(f"{arch}: the network gives NaN or infinity for a grey picture of {height}×{width} px{why}")
    sizes = ", ".join(map(str, asked))
    return ForeignError(
        f"{arch} is no network from picture to picture of the same size (sides multiples of {sizes}): {problem.words}"
    )


def _sides(multiple: int) -> tuple[int, int]:
    """Height and width of a picture to try: multiples of ``multiple``, or of the contract's if that is one of it.

    Both are odd multiples without a common factor, so that a network that needs more does not pass.
    """
    unit = SIZE_MULTIPLE if SIZE_MULTIPLE % multiple == 0 else multiple
    times = max(3, math.ceil(3 * SIZE_MULTIPLE / unit) | 1)
    return unit * times, unit * (times + 2)


def _problem(module: nn.Module, multiple: int) -> _Problem | None:
    """Why the network does not keep a picture whose sides are multiples of ``multiple``; ``None`` if it does."""
    picture = torch.full((1, 3, *_sides(multiple)), 0.5)
    try:
        with torch.inference_mode():
            given = module(picture)
    except (Exception, SystemExit) as error:  # whatever the network trips over
        return _Problem(kind="raised", words=_words(error))
    if not isinstance(given, Tensor):
        return _Problem(kind="no picture", words=f"it gives a {type(given).__name__}, not one tensor")
    if given.shape != picture.shape:
        return _Problem(kind="no picture", words=f"it makes {tuple(given.shape)} of {tuple(picture.shape)}")
    return None if torch.isfinite(given).all() else _Problem(kind="not finite", words="")


def _widest(module: nn.Module, multiple: int, arch: str) -> int:
    """The largest tensor that a part of the network gives, in channels at the picture's own size."""
    side = multiple * math.ceil(64 / multiple)
    largest = [3]

    def look(_module: nn.Module, _given: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            largest.append(math.ceil(output.numel() / side**2))

    hooks = [part.register_forward_hook(look) for part in module.modules()]
    try:
        with torch.inference_mode():
            module(torch.full((1, 3, side, side), 0.5))
    except (Exception, SystemExit) as error:  # one that took the size that was tried may take no other
        raise _failed(arch, side, side, _words(error)) from error
    finally:
        for hook in hooks:
            hook.remove()
    return max(largest)


def _failed(arch: str, height: int, width: int, words: str) -> ForeignError:
    return ForeignError(f"{arch}: the network failed on a grey picture of {height}×{width} px, {words}")


def _name(arch: str, module: nn.Module) -> str:
    """For files: the factory's name, or the network's class."""
    name = arch.partition(":")[2] or type(module).__name__
    plain = (letter if letter.isalnum() and letter.isascii() else "-" for letter in name)
    return "".join(plain).strip("-").lower() or "network"
