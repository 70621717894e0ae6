"""The description of the interface is whole, and its page asks for nothing elsewhere."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

from tests.runtime.serve.conftest import Client

from msan_runtime.pictures.picture import SUFFIXES
from msan_runtime.serve.app import paths_of
from msan_runtime.serve.pages import openapi_document

MakeClient = Callable[..., Client]

PAGES = {"/", "/docs", "/openapi.json", "/page/style.css", "/page/script.js"}


class Anything:
    """Has every attribute."""

    def __getattr__(self, name: str) -> str:
        return name


def test_every_path_is_described() -> None:
    anything: Any = Anything()
    served = {(method, path) for method, path in paths_of(anything) if path not in PAGES}
    document = openapi_document()
    described = {(method.upper(), path) for path, each in document["paths"].items() for method in each}
    assert described == served
    operations = [one for each in document["paths"].values() for one in each.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    for path, each in document["paths"].items():
        named = set(re.findall(r"{(\w+)}", path))
        for one in each.values():
            assert {p["name"] for p in one.get("parameters", ()) if p["in"] == "path"} == named


def test_the_formats_described_are_those_taken() -> None:
    parameters = openapi_document()["paths"]["/v1/deblur"]["post"]["parameters"]
    described = next(each["schema"]["enum"] for each in parameters if each["name"] == "format")
    assert sorted(described) == sorted(suffix[1:] for suffix in SUFFIXES)


def test_references_lead_somewhere() -> None:
    document = openapi_document()
    for found in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)):
        part = document
        for key in found.split("/"):
            part = part[key]


def test_pages_are_whole_and_ask_for_nothing_elsewhere(make_client: MakeClient) -> None:
    client = make_client()
    for path in sorted(PAGES):
        answer = asyncio.run(client.ask("GET", path))
        assert answer.status == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        text = answer.body.decode()
        assert "{{" not in text
        links = re.findall(r'(?:src|href|url)\s*[=(:]\s*"?((?:https?:)?//[^"\s)]+)', text)
        assert not links, (path, links)
    assert b"/v1/deblur" in asyncio.run(client.ask("GET", "/docs")).body
