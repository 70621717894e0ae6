"""Installed packages that stand in each other's way, and features that are not installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from msan_runtime.machine import installed_versions

__all__ = ["EXTRAS", "clash", "missing_extras", "reinstallation"]

ORT_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
"""All of them install the same module ``onnxruntime``: the one installed last overwrites the others."""

EXTRAS: Mapping[str, tuple[str, str]] = {
    "deep": ("imagecodecs", "pictures of 16 bits a channel"),
    "video": ("av", "video"),
}
"""Extras that add a feature and no backend: what they install, and what for."""


def clash() -> tuple[str, str] | None:
    """What is wrong with the installed ONNX Runtime, and the commands that put it right; ``None`` if nothing is."""
    found = installed_versions(ORT_PACKAGES)
    if len(found) > 1:
        named = " and ".join(f"{name} {version}" for name, version in found.items())
        keep = "onnxruntime-gpu" if "onnxruntime-gpu" in found else next(iter(found))
        return (
            f"{named} are both installed and overwrite each other: which one runs is chance",
            f"pip uninstall -y {' '.join(found)} && pip install '{keep}=={found[keep]}'",
        )
    if found and find_spec("onnxruntime") is None:
        name, version = next(iter(found.items()))
        words = f"{name} {version} is installed without its files: a package that overwrote them was uninstalled"
        return words, f"pip install --force-reinstall --no-deps '{name}=={version}'"
    return None


def reinstallation() -> str:
    """The command that puts a damaged ONNX Runtime right; empty if it is not known as installed."""
    found = installed_versions(ORT_PACKAGES)
    return next((f"pip install --force-reinstall '{name}=={version}'" for name, version in found.items()), "")


def missing_extras() -> Mapping[str, str]:
    """Extras that are not installed, and what each is for."""
    return {extra: use for extra, (module, use) in EXTRAS.items() if find_spec(module) is None}
