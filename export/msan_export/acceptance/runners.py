"""What is compared, as Polygraphy runners: the reference in PyTorch, graphs in ONNX Runtime, engines as built."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from msan_export._polygraphy import BaseRunner, TensorMetadata
from msan_export.acceptance.reference import FLOAT_NAME, Reference
from msan_export.acceptance.tapping import tapped
from msan_runtime.backends import ort
from msan_runtime.backends.base import Backend
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME, PictureArray
from msan_runtime.errors import BackendError
from msan_runtime.manifest import EngineEntry, GraphEntry

__all__ = ["ComparedRunner", "EngineRunner", "GraphRunner", "ReferenceRunner"]

Outputs = OrderedDict[str, npt.NDArray[Any]]


class ComparedRunner(BaseRunner):
    """What our runners share: one batch of uint8 pictures in.

    Attributes:
        subject: the file of the bundle that is run.
        precision: of it.
    """

    subject: str = ""
    precision: str = "fp32"

    def get_input_metadata_impl(self) -> TensorMetadata:
        return TensorMetadata().add(INPUT_NAME, dtype=np.uint8, shape=(-1, -1, -1, 3))

    def infer_impl(self, feed_dict: Mapping[str, PictureArray]) -> Outputs:
        started = time.perf_counter()
        outputs = OrderedDict(self._outputs(feed_dict[INPUT_NAME]))
        self.inference_time = time.perf_counter() - started
        return outputs

    def _outputs(self, batch: PictureArray) -> Mapping[str, npt.NDArray[Any]]:
        raise NotImplementedError


class ReferenceRunner(ComparedRunner):
    """The network of the checkpoint in PyTorch."""

    def __init__(self, reference: Reference) -> None:
        super().__init__(prefix=f"pytorch-{reference.kind}")
        self._reference = reference

    def _outputs(self, batch: PictureArray) -> Mapping[str, npt.NDArray[Any]]:
        return self._reference.outputs(batch)


class GraphRunner(ComparedRunner):
    """An ONNX graph on ONNX Runtime's CPU provider; one of float pictures is fed with the uint8 ones scaled.

    Raises:
        ContractError: if the graph does not clamp its picture.
        BackendError: if ONNX Runtime does not load it.
    """

    def __init__(self, model: onnx.ModelProto, entry: GraphEntry) -> None:
        super().__init__(prefix=f"onnxruntime-{entry.precision}-{entry.io}")
        self.subject = entry.path
        self.precision = entry.precision
        self._io = entry.io
        graph = tapped(model, entry.io).SerializeToString()
        self._session: Any = ort.open_session(graph, ort.PROVIDERS["ort-cpu"])

    def _outputs(self, batch: PictureArray) -> Mapping[str, npt.NDArray[Any]]:
        feed = batch if self._io == "uint8" else batch.astype(np.float32) / 255
        names = [output.name for output in self._session.get_outputs()]
        try:
            given = self._session.run(names, {INPUT_NAME: feed})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise BackendError(f"ONNX Runtime cannot run it: {ort.first_line(error)}") from error
        told = names if self._io == "uint8" else [FLOAT_NAME if name == OUTPUT_NAME else name for name in names]
        return dict(zip(told, given, strict=True))


class EngineRunner(ComparedRunner):
    """An engine of the bundle, as it is, on this machine's GPU. The backend stays the caller's to close."""

    def __init__(self, backend: Backend, entry: EngineEntry) -> None:
        super().__init__(prefix=backend.name)
        self.subject = entry.path
        self.precision = entry.precision
        self._backend = backend

    def _outputs(self, batch: PictureArray) -> Mapping[str, npt.NDArray[Any]]:
        return {OUTPUT_NAME: self._backend.infer(batch)}
