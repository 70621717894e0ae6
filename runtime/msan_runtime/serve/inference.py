"""Tensors in, tensors out: the Open Inference Protocol v2 over HTTP, with its extension for binary data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME, PictureArray, check_picture
from msan_runtime.errors import ContractError
from msan_runtime.serve.asgi import Reply
from msan_runtime.serve.desk import Task
from msan_runtime.serve.problems import ProblemError

__all__ = ["HEADER_LENGTH", "MODEL_VERSION", "TensorTask", "model_config", "model_metadata"]

HEADER_LENGTH = "inference-header-content-length"
MODEL_VERSION = "1"
PLATFORM = "msan"
SHAPE = [-1, -1, -1, 3]

DTYPES: dict[str, npt.DTypeLike] = {"UINT8": np.uint8, "UINT16": np.uint16, "FP32": np.float32}

MOST_JSON_BYTES = 4 * 1024 * 1024
"""Parsed, JSON takes up to 30 times its size. Larger tensors come and go as binary data."""

MOST_JSON_VALUES = 1_000_000
LONGEST = 2**31


def model_metadata(name: str) -> dict[str, Any]:
    """What the protocol tells of the model ``name``."""
    return {
        "name": name,
        "versions": [MODEL_VERSION],
        "platform": PLATFORM,
        "inputs": [{"name": INPUT_NAME, "datatype": "UINT8", "shape": SHAPE}],
        "outputs": [{"name": OUTPUT_NAME, "datatype": "UINT8", "shape": SHAPE}],
    }


def model_config(name: str) -> dict[str, Any]:
    """The same in the form of Triton's configurations."""
    tensor = {"data_type": "TYPE_UINT8", "dims": SHAPE}
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": 0,
        "input": [{"name": INPUT_NAME, **tensor}],
        "output": [{"name": OUTPUT_NAME, **tensor}],
    }


@dataclass(frozen=True, kw_only=True)
class _Input:
    """The request's one tensor: its values in ``data``, or the binary part of the body."""

    datatype: str
    shape: tuple[int, int, int, int]
    data: list[Any] | None


class TensorTask(Task):
    """A batch of pictures as a tensor N×H×W×3: UINT8, UINT16, or FP32 from 0 to 1."""

    def __init__(self, body: bytes, json_bytes: int | None, model: str, *, most_pixels: int) -> None:
        """``json_bytes`` is the length of the JSON part; the whole body, if left out."""
        self._json = memoryview(body)[:json_bytes]
        self._binary = memoryview(body)[len(self._json) :]
        if json_bytes is not None and json_bytes > len(body):
            raise _malformed(f"{HEADER_LENGTH} says {json_bytes} bytes, the body has {len(body)}")
        if len(self._json) > MOST_JSON_BYTES:
            raise ProblemError(
                "body-too-large",
                f"the JSON has {len(self._json)} bytes, more than {MOST_JSON_BYTES}: send the tensor as binary data",
            )
        self._model = model
        self._most_pixels = most_pixels
        self._input: _Input | None = None
        self._id: str | None = None
        self._binary_output = False

    def measure(self) -> int:
        """Pixels of all pictures together."""
        request = _parsed(self._json)
        self._input = _input_of(request, len(self._binary))
        self._id = _identifier(request)
        self._binary_output = _binary_output(request)
        size_px = math.prod(self._input.shape[:3])
        if size_px > self._most_pixels:
            raise ProblemError(
                "picture-too-large",
                f"the tensor has {size_px / 1e6:,.1f} megapixels, the limit is {self._most_pixels / 1e6:g}",
            )
        if not self._binary_output and 3 * size_px > MOST_JSON_VALUES:
            raise ProblemError(
                "body-too-large",
                f"an answer of {3 * size_px} values is not given as JSON: ask for binary_data, or send less",
            )
        return size_px

    def decode(self) -> Sequence[PictureArray]:
        found = self._input
        if found is None:
            raise RuntimeError("a tensor is decoded before it was measured")
        dtype = np.dtype(DTYPES[found.datatype])
        if found.data is None:
            tensor: npt.NDArray[Any] = np.frombuffer(self._binary, dtype.newbyteorder("<")).astype(dtype, copy=False)
        else:
            tensor = _array_of(found.data, dtype)
        if tensor.size != math.prod(found.shape):
            raise _malformed(f"the tensor has {tensor.size} values, its shape says {math.prod(found.shape)}")
        pictures = tuple(tensor.reshape(found.shape))
        try:
            for picture in pictures:
                check_picture(picture)
        except ContractError as error:
            raise _malformed(str(error)) from error
        return pictures

    def encode(self, sharp: Sequence[PictureArray]) -> Reply:
        tensor = np.stack(sharp)
        found = self._input
        if found is None:
            raise RuntimeError("a tensor is encoded before it was measured")
        output: dict[str, Any] = {"name": OUTPUT_NAME, "datatype": found.datatype, "shape": list(tensor.shape)}
        answer: dict[str, Any] = {"model_name": self._model, "model_version": MODEL_VERSION, "outputs": [output]}
        if self._id is not None:
            answer["id"] = self._id
        if not self._binary_output:
            output["data"] = tensor.ravel().tolist()
            return Reply(body=json.dumps(answer).encode())
        output["parameters"] = {"binary_data_size": tensor.nbytes}
        head = json.dumps(answer).encode()
        return Reply(
            media_type="application/octet-stream",
            headers={HEADER_LENGTH: str(len(head))},
            body=head + tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes(),
        )


def _parsed(content: memoryview) -> dict[str, Any]:
    try:
        request = json.loads(bytes(content))
    except (ValueError, RecursionError) as error:
        raise _malformed(f"the JSON part of the body cannot be read: {str(error)[:200]}") from error
    if not isinstance(request, dict):
        raise _malformed("the JSON part of the body must be an object")
    return request


def _input_of(request: Mapping[str, Any], binary_bytes: int) -> _Input:
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _malformed(f"there must be one input, {INPUT_NAME}")
    found: dict[str, Any] = inputs[0]
    name, datatype = found.get("name"), found.get("datatype")
    if name != INPUT_NAME:
        raise _malformed(f"no input {str(name)[:40]!r}. There is one: {INPUT_NAME}")
    if datatype not in DTYPES:
        raise _malformed(f"{INPUT_NAME} is of {', '.join(DTYPES)}, not {str(datatype)[:40]}")
    shape = _shape_of(found.get("shape"))
    size_bytes = _parameters(found).get("binary_data_size")
    if size_bytes is None:
        data = found.get("data")
        if not isinstance(data, list):
            raise _malformed(f"{INPUT_NAME} has neither data nor binary_data_size")
        return _Input(datatype=datatype, shape=shape, data=data)
    needed_bytes = math.prod(shape) * np.dtype(DTYPES[datatype]).itemsize
    if size_bytes != needed_bytes or binary_bytes != needed_bytes:
        raise _malformed(
            f"{datatype} of shape {list(shape)} has {needed_bytes} bytes, binary_data_size is {str(size_bytes)[:40]}, "
            f"the body has {binary_bytes} after its JSON"
        )
    return _Input(datatype=datatype, shape=shape, data=None)


def _shape_of(shape: object) -> tuple[int, int, int, int]:
    match shape:
        case [int(count), int(height), int(width), 3] if all(0 < size < LONGEST for size in (count, height, width)):
            return count, height, width, 3
        case _:
            raise _malformed(f"{INPUT_NAME} has the shape [pictures, height, width, 3], not {str(shape)[:100]}")


def _binary_output(request: Mapping[str, Any]) -> bool:
    """Whether the answer is to be binary: as the output says, or else the request."""
    binary = _parameters(request).get("binary_data_output") is True
    outputs = request.get("outputs") or []
    if not isinstance(outputs, list) or len(outputs) > 1 or not all(isinstance(each, dict) for each in outputs):
        raise _malformed(f"there is one output, {OUTPUT_NAME}")
    for output in outputs:
        parameters = _parameters(output)
        if output.get("name") != OUTPUT_NAME:
            raise _malformed(f"no output {str(output.get('name'))[:40]!r}. There is one: {OUTPUT_NAME}")
        if parameters.get("classification"):
            raise _malformed(f"{OUTPUT_NAME} is no classification")
        binary = parameters.get("binary_data", binary) is True
    return binary


def _parameters(part: Mapping[str, Any]) -> dict[str, Any]:
    parameters = part.get("parameters") or {}
    if not isinstance(parameters, dict) or any(str(name).startswith("shared_memory") for name in parameters):
        raise _malformed("parameters must be an object; shared memory is not supported")
    return parameters


def _identifier(request: Mapping[str, Any]) -> str | None:
    found = request.get("id")
    if found is not None and (not isinstance(found, str) or len(found) > 1000):
        raise _malformed("id must be a text of up to 1000 characters")
    return found


def _array_of(data: list[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Values of a JSON array, flat or nested, as ``dtype``; what does not fit is refused."""
    try:
        values: npt.NDArray[Any] = np.array(data)
    except ValueError as error:
        raise _malformed(f"data is no array: {str(error)[:100]}") from error
    if values.dtype.kind not in ("iuf" if dtype.kind == "f" else "iu"):
        raise _malformed(f"data holds values that are no {dtype}")
    least, most = (0, np.iinfo(dtype).max) if dtype.kind == "u" else (np.finfo(dtype).min, np.finfo(dtype).max)
    if values.size and not least <= values.min() <= values.max() <= most:  # so that NaN is refused, too
        raise _malformed(f"data holds values beyond {dtype}: from {values.min()} to {values.max()}")
    return values.astype(dtype)


def _malformed(detail: str) -> ProblemError:
    return ProblemError("malformed", detail)
