"""Releases of ONNX Runtime that would compute attention on the CPU are not used for a GPU."""

from __future__ import annotations

import onnxruntime
import pytest

from msan_runtime.backends import ort


@pytest.mark.parametrize(
    ("release", "usable"),
    [("1.22.0", False), ("1.24.4", False), ("1.25.0", True), ("1.31.1", True), ("2.0.0+cu13", True)],
)
def test_cuda_needs_a_release_whose_cuda_has_attention(
    release: str, usable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", release)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    problem = ort.unavailable("ort-cuda")
    assert (problem is None) is usable
    if problem is not None:
        assert release in problem
        assert "attention on the CPU" in problem
