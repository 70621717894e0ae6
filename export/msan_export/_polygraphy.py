"""Polygraphy, imported with its TensorRT-RTX flavour: the only file that sets its environment variable."""

from __future__ import annotations

import os

# Read once, when Polygraphy is imported; one process cannot serve both flavours.
os.environ.setdefault("POLYGRAPHY_USE_TENSORRT_RTX", "1")

from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, IterationResult
from polygraphy.logger import G_LOGGER

__all__ = [
    "BaseRunner",
    "Comparator",
    "IterationResult",
    "OnnxrtRunner",
    "TensorMetadata",
]

# It logs every tensor at its default level; what matters is in our report, and errors are raised.
G_LOGGER.module_severity = G_LOGGER.CRITICAL
