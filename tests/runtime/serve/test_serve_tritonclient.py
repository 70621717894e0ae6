"""The Open Inference Protocol, asked by NVIDIA's own client as it comes from PyPI."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
from tests.runtime.serve.conftest import Launch, Served

from msan_runtime.contract import PictureArray

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own dependencies warn on import
    from tritonclient import http
    from tritonclient.utils import InferenceServerException

Noise = Callable[..., PictureArray]


@pytest.fixture
def client(served: Served) -> Generator[Any]:
    opened = http.InferenceServerClient(served.url.removeprefix("http://"))
    yield opened
    opened.close()


def tensor_of(pixels: Any, datatype: str, *, binary: bool = True) -> Any:
    tensor = http.InferInput("blurred", pixels.shape, datatype)
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    return tensor


def deblurred_of(result: Any) -> Any:
    return result.as_numpy("deblurred")


def test_the_server_and_its_model_are_told(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "msan"
    metadata = client.get_model_metadata("tiny", "1")
    assert metadata["inputs"] == [{"name": "blurred", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert metadata["outputs"] == [{"name": "deblurred", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert client.get_model_config("tiny")["max_batch_size"] == 0


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_pictures_of_8_bits(client: Any, noise: Noise, *, binary_in: bool, binary_out: bool | None) -> None:
    pixels = noise(3, 21, 34, 3)
    outputs = None if binary_out is None else [http.InferRequestedOutput("deblurred", binary_data=binary_out)]
    result = client.infer(
        "tiny", [tensor_of(pixels, "UINT8", binary=binary_in)], outputs=outputs, request_id="mine", model_version="1"
    )
    assert np.array_equal(deblurred_of(result), 255 - pixels)
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("mine", "tiny", "1")


def test_pictures_of_more_bits(client: Any) -> None:
    chance = np.random.default_rng(0)
    deep = chance.integers(0, 65536, (1, 8, 9, 3), np.uint16)
    result = client.infer("tiny", [tensor_of(deep, "UINT16")]).as_numpy("deblurred")
    assert np.array_equal(result, 65535 - deep)
    floats = chance.random((2, 8, 9, 3), np.float32)
    result = client.infer("tiny", [tensor_of(floats, "FP32")]).as_numpy("deblurred")
    assert np.allclose(result, 1 - floats, atol=1e-6)


def test_errors_are_words(client: Any, noise: Noise) -> None:
    with pytest.raises(InferenceServerException, match=r"no model 'other'\. There is one: tiny"):
        client.infer("other", [tensor_of(noise(1, 8, 8, 3), "UINT8")])
    with pytest.raises(InferenceServerException, match="has the shape"):
        client.infer("tiny", [tensor_of(noise(8, 8, 3), "UINT8")])
    with pytest.raises(InferenceServerException, match="UINT8, UINT16, FP32, not FP64"):
        client.infer("tiny", [tensor_of(np.zeros((1, 8, 8, 3)), "FP64")])
    with pytest.raises(InferenceServerException, match="no output"):
        client.infer("tiny", [tensor_of(noise(1, 8, 8, 3), "UINT8")], outputs=[http.InferRequestedOutput("x")])


def test_many_at_once(served: Served, noise: Noise) -> None:
    client = http.InferenceServerClient(served.url.removeprefix("http://"), concurrency=8)
    pictures = [noise(1, 10 + number, 20, 3) for number in range(24)]
    asked = [client.async_infer("tiny", [tensor_of(pixels, "UINT8")]) for pixels in pictures]
    for pixels, each in zip(pictures, asked, strict=True):
        assert np.array_equal(deblurred_of(each.get_result()), 255 - pixels)
    client.close()


def test_with_a_token(launch: Launch, noise: Noise) -> None:
    token = "0123456789abcdef0123"
    server = launch(environment={"MSAN_SERVE_TOKEN": token})
    client = http.InferenceServerClient(server.url.removeprefix("http://"))
    pixels = noise(1, 8, 8, 3)
    assert client.is_server_ready()
    with pytest.raises(InferenceServerException, match="token"):
        client.infer("tiny", [tensor_of(pixels, "UINT8")])
    headers = {"Authorization": f"Bearer {token}"}
    result = client.infer("tiny", [tensor_of(pixels, "UINT8")], headers=headers)
    assert np.array_equal(deblurred_of(result), 255 - pixels)
    client.close()
