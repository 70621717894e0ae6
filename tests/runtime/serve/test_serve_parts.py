"""The parts of the server by themselves: formats accepted, forms, the gate, tensors, options."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from msan_runtime.pictures.picture import FileFormat
from msan_runtime.serve.accept import accepted_formats
from msan_runtime.serve.desk import PixelGate
from msan_runtime.serve.inference import TensorTask
from msan_runtime.serve.multipart import boundary_of, picture_of_form
from msan_runtime.serve.options import Access, Limits, ServeError, hosts_for, is_loopback
from msan_runtime.serve.problems import ProblemError


@pytest.mark.parametrize(
    ("accept", "source", "expected"),
    [
        (None, "TIFF", "TIFF"),
        ("*/*", "WEBP", "WEBP"),
        ("image/*", "JPEG", "JPEG"),
        ("image/png", "JPEG", "PNG"),
        ("image/avif,image/webp,*/*;q=0.8", "JPEG", "WEBP"),
        ("image/png;q=0.5, image/tiff", "PNG", "TIFF"),
        ("image/jpeg, image/png", "PNG", "PNG"),
        ("image/png;q=0, */*", "PNG", "JPEG"),
        ("image/*;q=0.1, image/webp;q=0.2, text/html", "PNG", "WEBP"),
    ],
)
def test_accept_chooses_the_format(accept: str | None, source: FileFormat, expected: str) -> None:
    assert accepted_formats(accept, source)[0] == expected


def test_formats_are_taken_in_the_order_of_their_quality() -> None:
    assert accepted_formats("image/jpeg, image/png;q=0.5, image/webp;q=0", "TIFF") == ["JPEG", "PNG"]
    assert accepted_formats("image/*;q=0.5, image/webp", "TIFF") == ["WEBP", "TIFF", "JPEG", "PNG"]


@pytest.mark.parametrize("accept", ["text/html", "image/avif", "image/png;q=0", "image/png;q=x", ",;,"])
def test_an_accept_without_a_format_of_ours_is_refused(accept: str) -> None:
    with pytest.raises(ProblemError, match="not-acceptable"):
        accepted_formats(accept, "PNG")


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--b\r\n" + head.encode() + b"\r\n\r\n" + body + b"\r\n" for head, body in parts) + end


def parsed(body: bytes, size: int) -> bytes:
    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    return asyncio.run(picture_of_form(parts(), b"b"))


FILE = 'Content-Disposition: form-data; name="picture"; filename="a.png"'
FIELD = 'Content-Disposition: form-data; name="note"'


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_the_file_of_a_form_comes_out_whole(size: int) -> None:
    content = bytes(range(256)) * 5 + b"\r\n--b\r\n--bogus\r\n--"
    content = content.replace(b"\r\n--b\r\n", b"\r\n--c\r\n")
    assert parsed(form((FILE, content)), size) == content


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (form(), "one file, not 0"),
        (form((FIELD, b"x")), "a field 'note' that is no file: options go in the query"),
        (form((FILE, b"x"), ('content-disposition: form-data; name="quality"', b"70")), "a field 'quality'"),
        (form(("X-Other: 1", b"x")), "a field '' that is no file"),
        (form((FILE, b"x"), (FILE, b"y")), "one file, not 2"),
        (form((FILE, b"x"), end=b""), "cut short"),
        (b"nonsense", "damaged"),
        (form((FILE + "x" * 10_000, b"x")), "damaged"),
    ],
)
def test_bad_forms_are_refused(body: bytes, words: str) -> None:
    with pytest.raises(ProblemError, match=words):
        parsed(body, 50)


def test_a_boundary_is_read_from_the_type() -> None:
    assert boundary_of('multipart/form-data; boundary="a b"') == b"a b"
    assert boundary_of("Multipart/Form-Data; boundary=abc") == b"abc"
    assert boundary_of(None) is None
    assert boundary_of("image/png") is None
    broken = "multipart/form-data; boundary*=a; boundary*0*=b"
    for bad in ("multipart/form-data", broken, f"multipart/form-data; boundary={'x' * 100}"):
        with pytest.raises(ProblemError, match="no boundary"):
            boundary_of(bad)


def test_the_gate_keeps_the_order_and_the_width() -> None:
    async def run() -> tuple[list[str], int]:
        gate, order, inside, most = PixelGate(10), list[str](), 0, 0

        async def one(name: str, size_px: int) -> None:
            nonlocal inside, most
            async with gate.passing(size_px):
                order.append(name)
                inside += min(size_px, 10)
                most = max(most, inside)
                await asyncio.sleep(0.01)
                inside -= min(size_px, 10)

        await asyncio.gather(one("a", 6), one("b", 5), one("c", 1), one("huge", 1000), one("d", 1))
        return order, most

    order, most = asyncio.run(run())
    assert order == ["a", "b", "c", "huge", "d"]
    assert most <= 10


def test_who_gives_up_at_the_gate_blocks_nobody() -> None:
    async def run() -> None:
        gate = PixelGate(10)

        async def one(size_px: int, seconds: float) -> None:
            async with gate.passing(size_px):
                await asyncio.sleep(seconds)

        first = asyncio.create_task(one(8, 0.05))
        await asyncio.sleep(0)
        waiting, small = asyncio.create_task(one(10, 0)), asyncio.create_task(one(2, 0))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait_for(small, 0.04)
        await first
        await asyncio.wait_for(one(10, 0), 1)

    asyncio.run(run())


def request_of(shape: object = (1, 2, 2, 3), **changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "blurred", "datatype": "UINT8", "shape": shape, "data": list(range(12))} | changes]}


def task_of(request: object, *, most_pixels: int = 1000) -> TensorTask:
    return TensorTask(json.dumps(request).encode(), None, "tiny", most_pixels=most_pixels)


def test_tensors_in_json() -> None:
    task = task_of({"id": "7", **request_of()})
    assert task.measure() == 4
    (picture,) = task.decode()
    assert np.array_equal(picture, np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    answer = json.loads(task.encode([255 - picture]).body)
    assert answer["id"] == "7"
    assert answer["outputs"] == [
        {"name": "deblurred", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [255 - n for n in range(12)]}
    ]


@pytest.mark.parametrize(
    ("request_body", "words"),
    [
        ([], "must be an object"),
        ({}, "one input"),
        ({"inputs": [1]}, "one input"),
        (request_of(name="other"), "no input 'other'"),
        (request_of(datatype="BYTES"), "not BYTES"),
        (request_of((1, 2, 2)), "has the shape"),
        (request_of((1, 2, 2, 4)), "has the shape"),
        (request_of((0, 2, 2, 3)), "has the shape"),
        (request_of((10**4000, 10**4000, 10**4000, 3)), "has the shape"),
        (request_of("x"), "has the shape"),
        (request_of(data=None), "neither data nor"),
        (request_of(data=[1, [2]] * 6), "no array"),
        (request_of(data=[256] * 12), "beyond uint8"),
        (request_of(data=[-1] * 12), "beyond uint8"),
        (request_of(data=[0.5] * 12), "no uint8"),
        (request_of(data=["a"] * 12), "no uint8"),
        (request_of(data=[10**400] * 12), "no uint8"),
        (request_of(data=[1] * 11), "11 values"),
        (request_of(datatype="FP32", data=[2.0] * 12), "from 0 to 1"),
        (request_of(datatype="FP32", data=[1e300] * 12), "beyond float32: from 1e\\+300"),
        (request_of(datatype="FP32", data=[float("nan")] * 12), "beyond float32: from nan"),
        (request_of(parameters={"shared_memory_region": "x"}), "shared memory"),
        (request_of(parameters={"binary_data_size": 12}), "has 12 bytes"),
        ({**request_of(), "outputs": [{"name": "other"}]}, "no output 'other'"),
        ({**request_of(), "outputs": [{"name": "deblurred", "parameters": {"classification": 2}}]}, "classification"),
        ({**request_of(), "id": 7}, "id must be"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(request_body: object, words: str) -> None:
    task = task_of(request_body)
    with pytest.raises(ProblemError, match=words) as caught:
        task.measure() and task.decode()  # pyright: ignore[reportUnusedExpression]
    assert caught.value.kind == "malformed"


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": ' + b"1" * 5000 + b"}"])
def test_json_that_cannot_be_read_is_refused(body: bytes) -> None:
    with pytest.raises(ProblemError, match="cannot be read"):
        TensorTask(body, None, "tiny", most_pixels=1000).measure()


def test_large_json_is_refused_unread() -> None:
    with pytest.raises(ProblemError, match="send the tensor as binary data"):
        TensorTask(b"[" * 5_000_000, None, "tiny", most_pixels=1000)
    with pytest.raises(ProblemError, match="ask for binary_data"):
        task_of(request_of((1, 1000, 1000, 3)), most_pixels=10**7).measure()


@pytest.mark.parametrize("name", ["body_bytes", "pixels", "requests", "queue", "body_s"])
def test_limits_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(ServeError, match=name):
        Limits(**{name: 0})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_times_without_end_are_refused(value: float) -> None:
    for name in ("body_s", "drain_s"):
        with pytest.raises(ServeError, match=name):
            Limits(**{name: value})  # pyright: ignore[reportArgumentType]


def test_bad_tokens_and_origins_are_refused() -> None:
    with pytest.raises(ServeError, match="openssl rand"):
        Access(token="short")
    for origin in ("*", "example.org", "https://example.org/", "https://*.example.org", "ftp://example.org"):
        with pytest.raises(ServeError, match="no origin"):
            Access(origins=frozenset({origin}))


def test_hosts_follow_the_address() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("example.org")
    assert hosts_for("127.0.0.1", frozenset({"sharp.example"})) == {"localhost", "127.0.0.1", "[::1]", "sharp.example"}
    assert hosts_for("0.0.0.0", frozenset()) is None
    assert hosts_for("192.0.2.1", frozenset({"a"})) == {"a", "192.0.2.1"}


@pytest.mark.parametrize("name", ["http://x", "x/", "x:80", "::1", "*", "", "straße.example"])
def test_names_that_no_request_can_bear_are_refused(name: str) -> None:
    with pytest.raises(ServeError, match="no host's name"):
        hosts_for("127.0.0.1", frozenset({name}))
