"""The server as a process: bytes as the command line's, crowds, slow and broken senders, and its end."""

from __future__ import annotations

import io
import random
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from tests.runtime.serve.conftest import Launch, Served, pixels_of, png

from msan_runtime.contract import PictureArray
from msan_runtime.image import read_picture

Noise = Callable[..., PictureArray]

PHOTO = Path(__file__).parents[3] / "examples" / "lighthouse-blurred.png"
TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".tif": "image/tiff"}


def post(served: Served, body: bytes, path: str = "/v1/deblur", **headers: str) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", content=body, headers=headers, timeout=60)


def resident_bytes(served: Served) -> float:
    text = httpx.get(f"{served.url}/metrics").text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("process_resident_memory"))


def deblurred_by_command(source: Path, target: Path, bundle: Path, *options: str) -> bytes:
    command = [sys.executable, "-c", "from msan_runtime.cli import main; main()", "deblur", str(source)]
    command += ["-o", str(target), "--bundle", str(bundle), "--backend", "ort-cpu"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    return target.read_bytes()


def samples(folder: Path, noise: Noise) -> list[Path]:
    """Pictures of every format, with what they can carry."""
    import imagecodecs

    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Camera"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = Image.fromarray(noise(40, 56, 3))
    photo.save(folder / "a.jpg", quality=80, exif=exif, icc_profile=icc, progressive=True, dpi=(300, 300))
    Image.fromarray(noise(33, 20, 4)).save(folder / "b.png", icc_profile=icc)
    photo.save(folder / "c.webp", lossless=True)
    photo.convert("L").save(folder / "d.tif", compression="tiff_lzw")
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), np.uint16)
    (folder / "e.png").write_bytes(imagecodecs.png_encode(deep))
    return sorted(folder.iterdir())


def test_results_are_those_of_the_command_line_to_the_byte(
    served: Served, serve_bundle: Path, noise: Noise, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for source in samples(tmp_path / "in", noise):
        expected = deblurred_by_command(source, tmp_path / "out" / source.name, serve_bundle)
        answer = post(served, source.read_bytes())
        assert answer.status_code == 200, (source.name, answer.text)
        assert answer.headers["content-type"] == TYPES[source.suffix]
        assert answer.content == expected, source.name
        form = httpx.post(f"{served.url}/v1/deblur", files={"picture": (source.name, source.read_bytes())})
        assert form.content == expected
    deep = (tmp_path / "in" / "e.png").read_bytes()
    for accept, status in (("image/jpeg, image/webp, image/png;q=0.5", 200), ("image/jpeg, image/webp", 422)):
        assert post(served, deep, accept=accept).status_code == status
    kept = read_picture(tmp_path / "out" / "a.jpg")
    assert kept.exif is not None
    assert b"Camera" in kept.exif
    assert kept.icc is not None
    assert read_picture(tmp_path / "out" / "e.png", deep=True).deep


def test_a_real_picture_with_the_shipped_network(launch: Launch, tmp_path: Path) -> None:
    server = launch(bundle="msan-s")
    expected = deblurred_by_command(PHOTO, tmp_path / "sharp.png", Path("msan-s"))
    assert post(server, PHOTO.read_bytes()).content == expected


def test_a_hundred_clients_at_once(served: Served, noise: Noise) -> None:
    """Good, broken and huge bodies: each is answered rightly or told to come back, and then is."""
    chance = random.Random(1)
    sizes = [(1, 1), (1, 400), (17, 3), (64, 64), (200, 300), (333, 222)]
    bodies = [png(noise(*size, 3)) for size in sizes]
    bad = {b"": 422, b"text": 415, bodies[4][:100]: 422, bodies[4][:-200]: 422, b"\xff\xd8\xff" + b"\0" * 99: 422}

    def visit(number: int) -> int:
        time.sleep(chance.random() / 10)
        body = bodies[number % len(bodies)] if number % 4 else list(bad)[number // 4 % len(bad)]
        while (answer := post(served, body)).status_code == 429:
            time.sleep(min(float(answer.headers["retry-after"]), 0.2))
        if body in bad:
            assert answer.status_code == bad[body], answer.text
        else:
            assert answer.status_code == 200, answer.text
            assert np.array_equal(pixels_of(answer.content), 255 - pixels_of(body))
        return answer.status_code

    with ThreadPoolExecutor(100) as pool:
        counts = Counter(pool.map(visit, range(120)))
    assert counts[200] == 90
    assert sum(counts.values()) == 120


def test_a_body_without_end_is_refused_and_not_kept(launch: Launch) -> None:
    server = launch("--max-body", "1MB")
    before = resident_bytes(server)

    def endless() -> object:
        for _ in range(2000):
            yield b"\0" * 100_000

    for content in (endless(), b"\0" * 200_000_000):
        try:
            answer = httpx.post(f"{server.url}/v1/deblur", content=content, timeout=60)  # pyright: ignore[reportArgumentType]
        except httpx.WriteError:
            continue  # it was still sending when the server had closed
        assert answer.status_code == 413
        assert answer.json()["type"] == "urn:msan:problem:body-too-large"
    assert resident_bytes(server) - before < 30e6


def test_a_bomb_is_refused_before_it_is_decoded(served: Served) -> None:
    small = png(np.zeros((1, 1, 3), np.uint8))
    head = b"IHDR" + struct.pack(">II", 60_000, 40_000) + small[24:29]
    answer = post(served, small[:12] + head + struct.pack(">I", zlib.crc32(head)) + small[33:])
    assert answer.status_code == 413
    assert "2,400.0 megapixels (60000×40000 px, width × height)" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "status"), [("/healthz", 200), ("/readyz", 200), ("/v2/health/ready", 200), ("/metrics", 421)]
)
def test_probes_ask_without_a_name(served: Served, path: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        assert read_all(connection).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize(
    "rest",
    [
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"Content-Length: x\r\n\r\n",
        b"X: " + b"x" * 1_000_000 + b"\r\n\r\n",
    ],
    ids=["chunks", "length", "headers"],
)
def test_what_is_not_http_gets_a_plain_400(served: Served, rest: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/deblur HTTP/1.1\r\nHost: localhost\r\n" + rest)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"text/plain" in answer


def test_nothing_that_clients_send_is_written_to_the_log(launch: Launch, noise: Noise) -> None:
    server = launch()
    body = b'--b\r\nContent-Disposition: form-data; name="p"; filename="a"\r\n\r\nx\r\n--bogus'
    statuses = [
        post(server, body[start:], **{"content-type": "multipart/form-data; boundary=b"}).status_code
        for start in (0, 5)
    ]
    photo = io.BytesIO()
    Image.fromarray(noise(8, 8, 3)).save(photo, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff")
    deep = io.BytesIO()
    tifffile.imwrite(deep, np.zeros((8, 8, 3), np.uint16), photometric="rgb")
    broken = deep.getvalue().replace(struct.pack("<HHI", 282, 5, 1), struct.pack("<HHI", 282, 5, 0x7FFFFFFF))
    assert broken != deep.getvalue()
    statuses += [post(server, photo.getvalue()).status_code, post(server, broken).status_code]
    tensor = {"name": "blurred", "datatype": "FP32", "shape": [1, 1, 1, 3], "data": [1e300, 0, 0]}
    statuses.append(httpx.post(f"{server.url}/v2/models/tiny/infer", json={"inputs": [tensor]}).status_code)
    assert server.stop() == 0
    assert statuses == [400, 400, 200, 200, 400]
    assert server.errors.read_text() == ""


def test_slow_and_silent_connections_are_closed(launch: Launch) -> None:
    server = launch("--body-timeout", "1")
    head = f"POST /v1/deblur HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n".encode()
    starts = (b"", b"POST /v1/de", head, head + b"Content-Length: 100\r\n\r\nabc")
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in starts]
    for connection, start in zip(connections, starts, strict=True):
        connection.sendall(start)
    answers: list[bytes] = []
    for connection in connections:
        with connection:
            answers.append(read_all(connection))
    assert answers[:3] == [b"", b"", b""]
    assert answers[3].startswith(b"HTTP/1.1 408 ")
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def read_all(connection: socket.socket) -> bytes:
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def test_who_does_not_take_the_answer_is_cut_off(launch: Launch, noise: Noise) -> None:
    server = launch("--body-timeout", "1", "--max-requests", "1")
    body = png(noise(1500, 1500, 3))
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"POST /v1/deblur HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until = time.monotonic() + 40
        while (answer := post(server, png(noise(4, 4, 3)))).status_code == 429 and time.monotonic() < until:
            time.sleep(0.5)
    assert answer.status_code == 200
    assert 'status="200"' in httpx.get(f"{server.url}/metrics").text


def test_who_leaves_makes_room(launch: Launch, noise: Noise) -> None:
    """Of a picture of many tiles, none is computed after its sender has gone."""
    server = launch("--tile", "64x64", "--max-requests", "2", bundle="msan-s")
    body = png(noise(1200, 1200, 3))
    head = f"POST /v1/deblur HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: {len(body)}\r\n\r\n"
    for ending in ("close", "reset"):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + body)
            time.sleep(1)
            if ending == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    started = time.monotonic()
    while post(server, png(noise(16, 16, 3))).status_code == 429:
        time.sleep(0.1)
    assert time.monotonic() - started < 5
    assert 'msan_errors_total{kind="gone"} 2.0' in httpx.get(f"{server.url}/metrics").text


def test_sigterm_finishes_what_was_accepted(launch: Launch, noise: Noise) -> None:
    server = launch("--tile", "128x128", bundle="msan-s")
    body = png(noise(600, 700, 3))  # the first must not be done before the last is in, also on a busy machine
    with ThreadPoolExecutor(3) as pool:
        inside = [pool.submit(post, server, body) for _ in range(3)]
        wait_for(server, "msan_requests_in_progress 4.0")
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        refused = post(server, body)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:msan:problem:stopping")
        for answer in (future.result() for future in inside):
            assert answer.status_code == 200
            assert pixels_of(answer.content).shape == (600, 700, 3)
    assert server.process.wait(timeout=10) == 0


def wait_for(server: Served, line: str) -> None:
    for _ in range(120):
        if line in httpx.get(f"{server.url}/metrics").text:
            return
        time.sleep(0.02)
    pytest.fail(f"never {line}")


def test_a_drain_has_an_end(launch: Launch, noise: Noise) -> None:
    server = launch("--tile", "64x64", "--drain", "0.5", bundle="msan-s")
    with ThreadPoolExecutor(1) as pool:
        inside = pool.submit(post, server, png(noise(2500, 2500, 3)))
        time.sleep(2)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 8
        assert (inside.result().status_code, inside.result().json()["type"]) == (503, "urn:msan:problem:stopping")


def test_ctrl_c_ends_an_idle_server_at_once(launch: Launch) -> None:
    server = launch()
    started = time.monotonic()
    assert server.stop(signal.SIGINT) == 0
    assert time.monotonic() - started < 5


def test_the_token_comes_from_a_file_or_the_environment(launch: Launch, noise: Noise, tmp_path: Path) -> None:
    token = "0123456789abcdef0123"
    file = tmp_path / "token"
    file.write_text(token + "\n")
    for server in (launch("--token-file", str(file)), launch(environment={"MSAN_SERVE_TOKEN": token})):
        assert post(server, png(noise(4, 4, 3))).status_code == 401
        assert post(server, png(noise(4, 4, 3)), authorization=f"Bearer {token}").status_code == 200


@pytest.mark.slow
def test_a_hundred_clients_from_1_px_to_24_megapixels(launch: Launch, noise: Noise) -> None:
    server = launch("--max-megapixels", "30")
    before = resident_bytes(server)
    sizes = [(1, 1), (4000, 6000), (100, 100), (2000, 3000), (1, 5000), (4000, 6000), (640, 360)]
    bodies: list[bytes] = []
    for size in sizes:
        file = io.BytesIO()
        small = Image.fromarray(noise(max(size[0] // 40, 1), max(size[1] // 40, 1), 3))
        small.resize((size[1], size[0]), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        bodies.append(file.getvalue())
    most = 0.0

    def visit(number: int) -> int:
        nonlocal most
        answer = httpx.post(f"{server.url}/v1/deblur", content=bodies[number % len(bodies)], timeout=600)
        most = max(most, resident_bytes(server))
        if answer.status_code == 200:
            with Image.open(io.BytesIO(answer.content)) as picture:
                assert picture.size == sizes[number % len(sizes)][::-1]
        return answer.status_code

    with ThreadPoolExecutor(100) as pool:
        counts = Counter(pool.map(visit, range(100)))
    assert set(counts) <= {200, 429}
    assert counts[200] >= 60
    assert most - before < 2.5e9
