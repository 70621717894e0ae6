"""The server as an application: what is answered, what is refused, who is let in, and what ends in time."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.runtime.serve.conftest import Answer, Client, pixels_of, png

from msan_runtime.backends.base import TileLimits
from msan_runtime.contract import PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import BackendError, OutOfMemoryError
from msan_runtime.serve.metrics import Metrics
from msan_runtime.serve.options import Access, Limits

MakeClient = Callable[..., Client]
Noise = Callable[..., PictureArray]

TOKEN = "a-token-of-some-length"
ID = "01234567-89ab-cdef-0123-456789abcdef"


def asked(client: Client, *arguments: Any, **options: Any) -> Answer:
    return asyncio.run(client.ask(*arguments, **options))


def figures(client: Client, name: str) -> dict[tuple[str, ...], float]:
    """The samples of a metric by the values of their labels."""
    text = asked(client, "GET", "/metrics").body.decode()
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def failing(error: Exception) -> Callable[[PictureArray], PictureArray]:
    """A network that fails so."""

    def network(tiles: PictureArray) -> PictureArray:
        del tiles
        raise error

    return network


class Latch:
    """A network that waits to be let go."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.go = threading.Event()
        self.runs = 0

    def __call__(self, tiles: PictureArray) -> PictureArray:
        self.runs += 1
        self.running.set()
        assert self.go.wait(20)
        return 255 - tiles

    async def begun(self) -> None:
        while not self.running.is_set():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("shape", [(1, 1, 3), (9, 200, 3), (150, 90, 3)])
def test_a_picture_comes_back_deblurred(make_client: MakeClient, noise: Noise, shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    body = png(pixels)
    parts = [body[:20], b"", body[20:]]
    answer = asked(make_client(), "POST", "/v1/deblur", parts)
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    assert np.array_equal(pixels_of(answer.body), 255 - pixels)


def test_options_choose_the_format(make_client: MakeClient, noise: Noise) -> None:
    client, body = make_client(), png(noise(16, 16, 3))
    for query, accept, expected in (
        ("", "image/webp", "image/webp"),
        ("?format=tif", "image/webp", "image/tiff"),
        ("?format=jpg&quality=50", "text/html", "image/jpeg"),
        ("?format=JPEG", "image/webp", "image/jpeg"),
        ("?format=tiff", "image/webp", "image/tiff"),
    ):
        answer = asked(client, "POST", f"/v1/deblur{query}", body, headers={"accept": accept})
        assert answer.headers["content-type"] == expected
    sizes = [len(asked(client, "POST", f"/v1/deblur?format=jpg&quality={q}", body).body) for q in (20, 95)]
    assert sizes[0] < sizes[1]


def test_the_best_format_that_holds_the_picture_is_taken(make_client: MakeClient) -> None:
    client, body = make_client(), alpha_png()
    for accept, expected in (
        ("image/jpeg, image/png;q=0.5", "image/png"),
        ("image/jpeg, image/webp;q=0.6, image/png;q=0.5", "image/webp"),
        ("image/jpeg, */*;q=0.1", "image/png"),
    ):
        answer = asked(client, "POST", "/v1/deblur", body, headers={"accept": accept})
        assert (answer.status, answer.headers["content-type"]) == (200, expected)


def alpha_png() -> bytes:
    return png(np.full((4, 4, 4), 100, np.uint8))


@pytest.mark.parametrize(
    ("query", "body", "headers", "status", "kind"),
    [
        ("", b"", {}, 422, "bad-picture"),
        ("", b"hello", {}, 415, "unsupported-format"),
        ("", png(np.zeros((4, 4, 3), np.uint8))[:50], {}, 422, "bad-picture"),
        ("", png(np.zeros((4, 4, 3), np.uint8)), {"content-encoding": "gzip"}, 415, "unsupported-format"),
        ("", png(np.zeros((90, 90, 3), np.uint8)), {}, 413, "picture-too-large"),
        ("", alpha_png(), {"accept": "image/jpeg"}, 422, "bad-picture"),
        ("", alpha_png(), {"accept": "text/html"}, 406, "not-acceptable"),
        ("", b"x" * 60_000, {}, 413, "body-too-large"),
        ("", b"", {"content-length": "60000"}, 413, "body-too-large"),
        ("", b"", {"content-length": "-1"}, 413, "body-too-large"),
        ("?quality=0", alpha_png(), {}, 422, "bad-option"),
        ("?quality=9999999999999999999999", alpha_png(), {}, 422, "bad-option"),
        ("?format=bmp", alpha_png(), {}, 422, "bad-option"),
        ("?format=png&format=jpg", alpha_png(), {}, 422, "bad-option"),
        ("?quality=7&quality=7", alpha_png(), {}, 422, "bad-option"),
        ("?tile=4", alpha_png(), {}, 422, "bad-option"),
        ("", b"x", {"content-type": "multipart/form-data"}, 400, "malformed"),
    ],
)
def test_what_cannot_be_used_is_told(
    make_client: MakeClient, query: str, body: bytes, headers: dict[str, str], status: int, kind: str
) -> None:
    client = make_client(limits=Limits(pixels=8000, body_bytes=50_000))
    answer = asked(client, "POST", f"/v1/deblur{query}", body, headers=headers)
    assert (answer.status, answer.kind) == (status, kind)
    assert figures(client, "msan_errors_total") == {(kind,): 1}


def test_unknown_paths_and_methods(make_client: MakeClient) -> None:
    client = make_client()
    assert asked(client, "GET", "/nothing").kind == "not-found"
    assert asked(client, "GET", "/healthz/").kind == "not-found"
    assert asked(client, "GET", "/page/../server.py").kind == "not-found"
    assert asked(client, "GET", "/v2/").body == asked(client, "GET", "/v2").body
    for method, path, allow in (
        ("PUT", "/v1/deblur", "POST"),
        ("DELETE", "/healthz", "GET, HEAD"),
        ("PUT", "/v2/models/tiny/infer", "POST"),
    ):
        answer = asked(client, method, path)
        assert (answer.kind, answer.headers["allow"]) == ("method-not-allowed", allow)
    assert asked(client, "GET", f"/v1/requests/{ID}").kind == "not-found"
    assert asked(client, "GET", "/v2/models/other").kind == "not-found"
    assert asked(client, "GET", "/v2/models/tiny/versions/2").kind == "not-found"


def test_what_was_not_foreseen_is_told_by_its_number_alone(
    make_client: MakeClient, noise: Noise, caplog: pytest.LogCaptureFixture
) -> None:
    answer = asked(make_client(failing(RuntimeError("secret in /a/folder"))), "POST", "/v1/deblur", png(noise(8, 8, 3)))
    assert answer.status == 500
    assert "secret" not in answer.body.decode()
    number = answer.headers["x-request-id"]
    assert number in answer.problem["detail"]
    assert number in caplog.text
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("error", "kind"), [(BackendError("device lost"), "backend-failed"), (OutOfMemoryError("full"), "no-room")]
)
def test_a_device_that_fails_is_no_bug(make_client: MakeClient, noise: Noise, error: Exception, kind: str) -> None:
    answer = asked(make_client(failing(error)), "POST", "/v1/deblur", png(noise(8, 8, 3)))
    assert (answer.status, answer.kind) == (503, kind)


def test_the_token(make_client: MakeClient, noise: Noise) -> None:
    client, body = make_client(access=Access(token=TOKEN)), png(noise(4, 4, 3))
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"authorization": "Bearer \xff"}):
        answer = asked(client, "POST", "/v1/deblur", body, headers=headers)
        assert (answer.status, answer.kind) == (401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    for path in ("/metrics", "/v2/models/tiny", f"/v1/requests/{ID}", "/nothing"):
        assert asked(client, "GET", path).status == 401
    for path in ("/", "/healthz", "/readyz", "/docs", "/openapi.json", "/page/script.js", "/v2/health/ready"):
        assert asked(client, "GET", path).status == 200
    right = {"authorization": f"bearer {TOKEN}"}
    assert asked(client, "POST", "/v1/deblur", body, headers=right).status == 200
    assert asked(client, "GET", "/metrics", headers=right).status == 200
    assert asked(make_client(access=Access(token=TOKEN, open_metrics=True)), "GET", "/metrics").status == 200


def test_names_and_origins(make_client: MakeClient, noise: Noise) -> None:
    access = Access(hosts=frozenset({"localhost", "[::1]"}), origins=frozenset({"https://friend.example"}))
    client, body = make_client(access=access), png(noise(4, 4, 3))
    for host, status in (("localhost:80", 200), ("[::1]:80", 200), ("[::1]", 200), ("evil.example", 421), ("", 421)):
        assert asked(client, "GET", "/healthz", headers={"host": host}).status == status
    for origin, status in (
        ("http://localhost", 200),
        ("https://friend.example", 200),
        ("https://evil.example", 403),
        ("null", 403),
    ):
        answer = asked(client, "POST", "/v1/deblur", body, headers={"origin": origin})
        assert answer.status == status
        allowed = answer.headers.get("access-control-allow-origin")
        assert allowed == ("https://friend.example" if "friend" in origin else None)


def test_cors_is_off_unless_asked_for(make_client: MakeClient) -> None:
    headers = {"origin": "https://friend.example", "access-control-request-method": "POST"}
    off = asked(make_client(), "OPTIONS", "/v1/deblur", headers=headers)
    assert off.status == 403
    assert not [name for name in off.headers if name.startswith("access-control")]
    client = make_client(access=Access(token=TOKEN, origins=frozenset({"https://friend.example"})))
    on = asked(client, "OPTIONS", "/v1/deblur", headers=headers)
    assert on.headers["access-control-allow-origin"] == "https://friend.example"
    told = asked(client, "POST", "/v1/deblur", b"x", headers={"origin": "https://friend.example"})
    assert (told.status, told.headers["access-control-allow-origin"]) == (401, "https://friend.example")


def test_a_full_queue_is_told_with_the_time_to_come_back(make_client: MakeClient, noise: Noise) -> None:
    latch = Latch()
    client, body = make_client(latch, limits=Limits(queue=2, requests=4)), png(noise(8, 8, 3))

    async def run() -> list[Answer]:
        working = asyncio.create_task(client.ask("POST", "/v1/deblur", body))
        await latch.begun()
        waiting = [asyncio.create_task(client.ask("POST", "/v1/deblur", body)) for _ in range(2)]
        await asyncio.sleep(0.1)
        refused = await client.ask("POST", "/v1/deblur", body)
        metrics = await client.ask("GET", "/metrics")
        assert b"msan_queue_depth 2.0" in metrics.body
        latch.go.set()
        return [refused, *(await asyncio.gather(working, *waiting))]

    refused, *done = asyncio.run(run())
    assert (refused.status, refused.kind) == (429, "busy")
    assert 1 <= int(refused.headers["retry-after"]) <= 300
    assert [answer.status for answer in done] == [200] * 3


def test_bodies_find_no_room_beyond_their_bytes(make_client: MakeClient, noise: Noise) -> None:
    latch = Latch()
    body = png(noise(64, 64, 3))
    client = make_client(latch, limits=Limits(body_bytes=len(body), pixels=5000))

    async def run() -> list[int]:
        tasks = [asyncio.create_task(client.ask("POST", "/v1/deblur", body)) for _ in range(7)]
        await latch.begun()
        await asyncio.sleep(0.1)
        latch.go.set()
        return sorted([answer.status for answer in await asyncio.gather(*tasks)])

    assert asyncio.run(run()) == [200] * 4 + [429] * 3
    assert client.service.admission.held_bytes == 0


def test_progress_is_told(make_client: MakeClient, noise: Noise) -> None:
    latch = Latch()
    client = make_client(latch)
    body = png(noise(100, 100, 3))

    async def run() -> list[dict[str, Any]]:
        first = asyncio.create_task(client.ask("POST", "/v1/deblur", body, headers={"x-request-id": ID}))
        await latch.begun()
        other = ID.replace("0", "f")
        second = asyncio.create_task(client.ask("POST", "/v1/deblur", body, headers={"x-request-id": other}))
        await asyncio.sleep(0.1)
        told = [json.loads((await client.ask("GET", f"/v1/requests/{one}")).body) for one in (ID, other)]
        latch.go.set()
        answers = await asyncio.gather(first, second)
        assert [answer.headers["x-request-id"] for answer in answers] == [ID, other]
        return told

    first, second = asyncio.run(run())
    assert (first["state"], first["ahead"], first["tiles_done"]) == ("deblurring", 0, 0)
    assert first["tiles_total"] > 3
    assert (second["state"], second["ahead"]) == ("waiting", 1)


def test_who_leaves_is_not_worked_for(make_client: MakeClient, noise: Noise) -> None:
    latch = Latch()
    client, body = make_client(latch), png(noise(100, 100, 3))

    async def run() -> list[Answer]:
        leave = asyncio.Event()
        first = asyncio.create_task(client.ask("POST", "/v1/deblur", body, leave=leave))
        await latch.begun()
        second = asyncio.create_task(client.ask("POST", "/v1/deblur", body, leave=leave))
        await asyncio.sleep(0.05)
        leave.set()
        await asyncio.sleep(0.05)
        latch.go.set()
        return list(await asyncio.gather(first, second))

    assert [answer.status for answer in asyncio.run(run())] == [0, 0]
    assert latch.runs == 1  # of four tiles and more, and of the other picture
    assert figures(client, "msan_errors_total") == {("gone",): 2}
    assert not client.service.admission.tickets
    assert asked(client, "POST", "/v1/deblur", body).status == 200


def test_a_slow_sender_is_cut_off(make_client: MakeClient) -> None:
    client = make_client(limits=Limits(body_s=1))
    started = time.monotonic()
    answer = asked(client, "POST", "/v1/deblur", [b"x"] * 100, pause_s=0.3)
    assert (answer.status, answer.kind) == (408, "slow-sender")
    assert time.monotonic() - started < 3
    assert answer.headers["connection"] == "close"
    assert not client.service.admission.tickets


def test_a_server_that_stops_lets_nobody_in_and_ends_the_rest(make_client: MakeClient, noise: Noise) -> None:
    latch = Latch()
    client, body = make_client(latch), png(noise(100, 100, 3))

    async def run() -> list[Answer]:
        inside = asyncio.create_task(client.ask("POST", "/v1/deblur", body))
        await latch.begun()
        client.service.admission.draining = True
        answers = [await client.ask("GET", path) for path in ("/readyz", "/v2/health/ready", "/healthz")]
        answers.append(await client.ask("POST", "/v1/deblur", body))
        client.service.admission.stop()
        latch.go.set()
        return [*answers, await inside]

    answers = asyncio.run(run())
    assert [answer.status for answer in answers] == [503, 503, 200, 503, 503]
    assert answers[3].headers["retry-after"]
    assert answers[4].kind == "stopping"


def test_metrics_tell_what_was_done(make_client: MakeClient, noise: Noise) -> None:
    client = make_client()
    for _ in range(3):
        assert asked(client, "POST", "/v1/deblur", png(noise(10, 20, 3))).status == 200
    assert figures(client, "msan_requests_total")["/v1/deblur", "200"] == 3
    assert figures(client, "msan_pixels_total") == {(): 600}
    assert figures(client, "msan_request_seconds_count")["/v1/deblur",] == 3
    assert {"measure", "decode", "deblur", "encode"} <= {key[0] for key in figures(client, "msan_stage_seconds_count")}
    assert [key for key in figures(client, "msan_backend_info") if {"function", "tiny"} <= set(key)]
    assert figures(client, "msan_requests_in_progress") == {(): 1}


def test_paths_that_nobody_foresaw_make_no_new_figures(make_client: MakeClient) -> None:
    client = make_client()
    for number in range(20):
        asked(client, "GET", f"/{number}")
    assert {key[0] for key in figures(client, "msan_requests_total")} <= {"other", "/metrics"}


@pytest.mark.parametrize(("backend", "precision"), [("openvino-bf16", "bf16"), ("openvino", "fp32")])
def test_the_precision_told_is_that_of_the_arithmetic(
    make_deblurrer: Callable[..., Deblurrer], backend: str, precision: str
) -> None:
    deblurrer = make_deblurrer(lambda tiles: tiles, TileLimits(area_px=4096))
    deblurrer.backend.name, deblurrer.backend.precision = backend, "fp32"
    assert f'precision="{precision}"' in Metrics(deblurrer).text()[0].decode()


def test_refusals_are_counted_where_they_were_asked(make_client: MakeClient) -> None:
    access = Access(token=TOKEN, open_metrics=True, origins=frozenset({"https://friend.example"}))
    client = make_client(access=access)
    asked(client, "POST", "/v1/deblur", b"x")
    asked(client, "GET", "/nothing")
    asked(client, "PUT", "/v1/deblur", headers={"authorization": f"Bearer {TOKEN}"})
    asked(client, "GET", f"/v1/requests/{ID}", headers={"authorization": f"Bearer {TOKEN}"})
    counts = figures(client, "msan_requests_total")
    assert counts == {
        ("/v1/deblur", "401"): 1,
        ("other", "401"): 1,
        ("/v1/deblur", "405"): 1,
        ("/v1/requests/{id}", "404"): 1,
    }


def test_more_than_8_bits_without_a_graph_for_them(make_client: MakeClient) -> None:
    tensor = {"name": "blurred", "datatype": "FP32", "shape": [1, 1, 1, 3], "data": [0.1, 0.2, 0.3]}
    body = json.dumps({"inputs": [tensor]}).encode()
    answer = asked(make_client(), "POST", "/v2/models/tiny/infer", body)
    assert (answer.status, answer.kind) == (415, "unsupported-format")
    assert answer.problem["error"] == answer.problem["detail"]
