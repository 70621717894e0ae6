"""Servers: as ASGI applications around plain functions, and as processes started by the command."""

from __future__ import annotations

import asyncio
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msan_runtime.backends.base import TileLimits
from msan_runtime.contract import CONTRACT_VERSION, PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.manifest import GraphEntry, Manifest, describe_file, save_manifest
from msan_runtime.serve.app import Service, build_service
from msan_runtime.serve.asgi import Message
from msan_runtime.serve.options import Access, Limits

START_S = 60


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an application answered; status 0 if it answered nothing."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        told = json.loads(self.body)
        assert told["status"] == self.status
        assert {"type", "title", "detail", "instance"} <= told.keys()
        return told

    @property
    def kind(self) -> str:
        return self.problem["type"].removeprefix("urn:msan:problem:")


class Client:
    """Asks an ASGI application, part by part, and can leave."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] = b"",
        *,
        headers: dict[str, str] | None = None,
        leave: asyncio.Event | None = None,
        pause_s: float = 0.0,
    ) -> Answer:
        path, _, query = path.partition("?")
        parts = [body] if isinstance(body, bytes) else list(body)
        given = {"host": "localhost"} | (headers or {})
        scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
        }
        sent: list[Message] = []

        async def receive() -> Message:
            if parts:
                await asyncio.sleep(pause_s)
                return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
            await (leave or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        await self.service.app(scope, receive, send)
        status = sent[0]["status"] if sent else 0
        pairs = sent[0]["headers"] if sent else []
        return Answer(
            status=status,
            headers={name.decode(): value.decode() for name, value in pairs},
            body=b"".join(message.get("body", b"") for message in sent[1:]),
        )


def png(pixels: PictureArray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pixels_of(content: bytes) -> PictureArray:
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture)


@pytest.fixture
def make_client(make_deblurrer: Callable[..., Deblurrer]) -> Generator[Callable[..., Client]]:
    """A maker of clients of a service whose network is a function; 255 - x if left out."""
    services: list[Service] = []

    def make(
        network: Callable[[PictureArray], PictureArray] = lambda tiles: 255 - tiles,
        *,
        limits: Limits | None = None,
        access: Access | None = None,
        area_px: int = 4096,
    ) -> Client:
        deblurrer = make_deblurrer(network, TileLimits(area_px=area_px), overlap_px=8)
        services.append(build_service(deblurrer, limits or Limits(), access or Access()))
        return Client(services[-1])

    yield make
    for service in services:
        service.desk.close()


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server process."""

    url: str
    process: subprocess.Popen[str]
    errors: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


Launch = Callable[..., Served]


def launched(arguments: tuple[str, ...], errors: Path, environment: dict[str, str]) -> Served:
    command = [sys.executable, "-c", "from msan_runtime.cli import main; main()", "serve", "--port", "0", *arguments]
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **environment}
        )
    assert process.stdout is not None
    lines: queue.Queue[str] = queue.Queue()
    out = process.stdout
    threading.Thread(target=lambda: lines.put(out.readline()), daemon=True).start()
    words = lines.get(timeout=START_S).split()
    assert words[:3] == ["msan", "serves", "on"], errors.read_text()
    return Served(url=words[3], process=process, errors=errors)


def ended(served: Served) -> None:
    if served.process.poll() is None:
        assert served.stop() == 0
    assert served.process.stdout is not None
    served.process.stdout.close()
    assert "Traceback" not in served.errors.read_text()


@pytest.fixture(scope="module")
def serve_bundle(
    tmp_path_factory: pytest.TempPathFactory, inverting_graph: bytes, inverting_float_graph: bytes
) -> Path:
    """A bundle that inverts pictures of 8 and 16 bits."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "fp32.onnx").write_bytes(inverting_graph)
    (folder / "float.onnx").write_bytes(inverting_float_graph)
    graphs = (
        GraphEntry(path="fp32.onnx", precision="fp32", io="uint8", opset=18),
        GraphEntry(path="float.onnx", precision="fp32", io="float32", opset=18),
    )
    manifest = Manifest(
        name="tiny",
        spec={"stages": 2, "attention": True},
        contract_version=CONTRACT_VERSION,
        graphs=graphs,
        engines=(),
        files=tuple(describe_file(folder, graph.path) for graph in graphs),
        versions={},
        provenance={"licence": "Apache-2.0"},
    )
    save_manifest(manifest, folder)
    return folder


@pytest.fixture
def launch(serve_bundle: Path, tmp_path: Path) -> Generator[Launch]:
    """Starts ``msan serve`` with further options; of the bundle that inverts, unless told otherwise."""
    started: list[Served] = []

    def start(*arguments: str, bundle: str | None = None, environment: dict[str, str] | None = None) -> Served:
        options = ("--backend", "ort-cpu", "--bundle", bundle or str(serve_bundle), *arguments)
        started.append(launched(options, tmp_path / f"errors-{len(started)}.txt", environment or {}))
        return started[-1]

    yield start
    for served in started:
        ended(served)


@pytest.fixture(scope="module")
def served(serve_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    """One server for a module's tests that do not end it."""
    errors = tmp_path_factory.mktemp("served") / "errors.txt"
    server = launched(("--backend", "ort-cpu", "--bundle", str(serve_bundle)), errors, {})
    yield server
    ended(server)
