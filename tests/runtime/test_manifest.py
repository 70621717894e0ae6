"""The manifest: what is saved is what is loaded, and no change goes unnoticed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msan_runtime.errors import BundleError
from msan_runtime.manifest import (
    MANIFEST_NAME,
    BundleFile,
    EngineEntry,
    GraphEntry,
    Manifest,
    Profile,
    describe_file,
    load_manifest,
    read_checked,
    save_manifest,
)

SHA = hashlib.sha256(b"weights").hexdigest()


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "name": "msan-s",
        "spec": {"stages": 2, "attention": True},
        "contract_version": 1,
        "graphs": (GraphEntry(path="fp16.onnx", precision="fp16", io="uint8", opset=23),),
        "engines": (
            EngineEntry(
                path="engines/sm86.rtx",
                flavour="tensorrt-rtx",
                flavour_version="1.7.1",
                compute_capabilities=("8.6", "8.9"),
                profile=Profile(min=(1, 64, 64), opt=(1, 720, 1280), max=(4, 720, 1280)),
                precision="fp16",
                layer_types={"convolution fp16": 192},
                graph="fp16.onnx",
            ),
        ),
        "files": tuple(BundleFile(path=path, size_bytes=7, sha256=SHA) for path in ("fp16.onnx", "engines/sm86.rtx")),
        "versions": {"onnx": "1.18"},
        "provenance": {"date": "2025-01-01", "checkpoint": "msan · größe.safetensors"},
    }
    return Manifest(**{**values, **changes})


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manifest")
    save_manifest(manifest(), folder)
    return folder


@pytest.fixture
def edited(saved: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Edits the saved JSON and gives it the digest that such a body has: a careful forger, or another msan."""

    def edit(change: Callable[[dict[str, Any]], object]) -> Path:
        body = json.loads((saved / MANIFEST_NAME).read_text(encoding="utf-8"))
        del body["manifest_sha256"]
        change(body)
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        body["manifest_sha256"] = hashlib.sha256(canonical).hexdigest()
        (tmp_path / MANIFEST_NAME).write_text(json.dumps(body), encoding="utf-8")
        return tmp_path

    return edit


def test_what_is_saved_is_what_is_loaded(saved: Path) -> None:
    assert load_manifest(saved) == manifest()


def test_a_manifest_is_plain_json_for_people(saved: Path) -> None:
    text = (saved / MANIFEST_NAME).read_text(encoding="utf-8")
    assert "größe" in text
    body = json.loads(text)
    assert body["schema_version"] == 2
    assert body["engines"][0]["profile"]["max"] == [4, 720, 1280]


def test_a_manifest_says_how_far_attention_looks(tmp_path: Path) -> None:
    save_manifest(manifest(attention="window:192"), tmp_path)
    assert load_manifest(tmp_path).attention == "window:192"


def test_a_manifest_from_before_there_were_windows_is_global(edited: Callable[..., Path]) -> None:
    assert load_manifest(edited(lambda body: body.pop("attention"))).attention == "global"


@pytest.mark.parametrize("name", ["window", "window:100", "window:0192", "local", ""])
def test_attention_that_does_not_exist_is_refused(edited: Callable[..., Path], name: str) -> None:
    with pytest.raises(BundleError, match=r"attention that this msan does not know"):
        load_manifest(edited(lambda body: body.update(attention=name)))


def test_an_unchanged_body_with_its_digest_is_accepted(edited: Callable[..., Path]) -> None:
    assert load_manifest(edited(lambda _: None)) == manifest()


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_one_changed_byte_is_noticed_or_means_the_same(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray((saved / MANIFEST_NAME).read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255).filter(lambda value: value != content[position]))
    folder = tmp_path_factory.getbasetemp() / "changed"
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST_NAME).write_bytes(content)
    try:
        loaded = load_manifest(folder)
    except BundleError:
        return
    assert loaded == manifest()


@pytest.mark.parametrize("value", ["msan-s", "720", "192", "fp16.onnx", "8.9", "1.7.1", SHA, "true", "2025", "uint8"])
def test_a_changed_value_is_noticed(saved: Path, tmp_path: Path, value: str) -> None:
    text = (saved / MANIFEST_NAME).read_text(encoding="utf-8")
    assert value in text
    other = "null" if value == "true" else value[:-1] + ("3" if value[-1] != "3" else "4")
    (tmp_path / MANIFEST_NAME).write_text(text.replace(value, other, 1), encoding="utf-8")
    with pytest.raises(BundleError, match="was changed since"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("version", "step"),
    [(0, "Deploy the checkpoint again"), (3, "Upgrade msan"), ("1", "Deploy"), (None, "Deploy"), (True, "Deploy")],
)
def test_an_unknown_schema_version_is_refused_by_its_number(
    edited: Callable[..., Path], version: object, step: str
) -> None:
    folder = edited(lambda body: body.update(schema_version=version))
    with pytest.raises(BundleError, match=f"schema version {version!r}, this msan reads 1 to 2. {step}"):
        load_manifest(folder)


def test_a_manifest_of_schema_1_is_read_and_has_no_self_test(edited: Callable[..., Path]) -> None:
    def older(body: dict[str, Any]) -> None:
        body.pop("self_test")
        body.update(schema_version=1)

    assert load_manifest(edited(older)).self_test is None


def test_the_pictures_of_the_self_test_are_listed(edited: Callable[..., Path]) -> None:
    test = {"blurred": "a.png", "deblurred": "b.png"}
    with pytest.raises(BundleError, match=r"uses a\.png but does not list its hash"):
        load_manifest(edited(lambda body: body.update(self_test=test)))


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(comment="hello"),
        lambda body: body["graphs"][0].update(comment="hello"),
        lambda body: body["engines"][0]["profile"].update(typical=[1, 8, 8]),
        lambda body: body["files"][0].update(mode=0o644),
        lambda body: body.pop("name"),
        lambda body: body.pop("graphs"),
        lambda body: body["files"][0].pop("size_bytes"),
        lambda body: body.update(graphs=[3]),
        lambda body: body.update(engines={"path": 1}),
        lambda body: body["engines"][0].update(profile=None),
        lambda body: body["engines"][0].update(profile={"min": 1, "opt": 1, "max": 1}),
        lambda body: body["files"][0].update(path=7),
        lambda body: body["files"][0].update(sha256=None),
        lambda body: body.update(attention=192),
    ],
)
def test_a_key_too_many_or_too_few_or_of_another_kind_is_refused(
    edited: Callable[..., Path], change: Callable[[dict[str, Any]], object]
) -> None:
    with pytest.raises(BundleError, match="does not follow schema 2"):
        load_manifest(edited(change))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot read"),
        (b"{", "cannot read"),
        (b"\xff\xfe\x00", "cannot read"),
        (b"[" * 100_000, "cannot read"),
        (b"[]", "holds a list"),
        (b"{}", "schema version None"),
        (b'{"schema_version": 1, "name": "\\ud800"}', "was changed"),
    ],
)
def test_what_is_not_a_manifest_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(BundleError, match=words):
        load_manifest(tmp_path)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle.*msan deploy"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/passwd", "a/../../x", "..", "", ".", "C:/x", "..\\x", "a\\b", "a\0b", "a\nb", "file:///etc/passwd"],
)
def test_a_path_that_is_not_inside_the_folder_is_refused(edited: Callable[..., Path], path: str) -> None:
    with pytest.raises(BundleError, match="not a file inside the bundle"):
        load_manifest(edited(lambda body: body["files"][0].update(path=path)))


@pytest.mark.parametrize("digest", ["", "abc", SHA.upper(), SHA + "0", "g" * 64, SHA[:-1] + "\n"])
def test_a_digest_that_is_none_is_refused(digest: str) -> None:
    with pytest.raises(BundleError, match="SHA-256"):
        BundleFile(path="a", size_bytes=1, sha256=digest)


@pytest.mark.parametrize("name", ["graphs", "engines"])
def test_what_is_run_must_be_among_the_hashed_files(name: str) -> None:
    entry = dataclasses.replace(getattr(manifest(), name)[0], path="other")
    with pytest.raises(BundleError, match="does not list its hash"):
        manifest(**{name: (entry,)})


def test_another_image_contract_is_refused() -> None:
    with pytest.raises(BundleError, match="image contract 2, this msan 1"):
        manifest(contract_version=2)


@pytest.mark.parametrize("change", [{"precision": "int4"}, {"io": "bfloat16"}])
def test_a_graph_of_unknown_type_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=next(iter(change.values()))):
        dataclasses.replace(manifest().graphs[0], **change)


@pytest.mark.parametrize("change", [{"precision": "int4"}, {"flavour": "openvino"}])
def test_an_engine_of_unknown_kind_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=next(iter(change.values()))):
        dataclasses.replace(manifest().engines[0], **change)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((1, 8, 8), (1, 8), (1, 8, 8)), "three shapes"),
        (((0, 8, 8), (1, 8, 8), (1, 8, 8)), "three shapes"),
        (((1, 8, 8), (1, 12, 8), (1, 16, 8)), "multiples of 8"),
        (((1, 16, 8), (1, 8, 8), (1, 16, 8)), "min <= opt <= max"),
        (((1, 8, 8), (2, 8, 8), (1, 8, 8)), "min <= opt <= max"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(shapes: tuple[Any, Any, Any], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        Profile(min=shapes[0], opt=shapes[1], max=shapes[2])


def test_a_file_is_described_by_its_size_and_hash(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # The SHA-256 of "abc" from FIPS 180-2, appendix B.1.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert describe_file(tmp_path, "abc") == BundleFile(path="abc", size_bytes=3, sha256=expected)


def test_a_file_is_read_only_if_its_hash_is_the_manifests(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    entry = describe_file(tmp_path, "abc")
    assert read_checked(tmp_path, entry) == b"abc"
    (tmp_path / "abc").write_bytes(b"abd")
    with pytest.raises(BundleError, match=r"abc was changed.*manifest ba7816bf8f01"):
        read_checked(tmp_path, entry)


@pytest.mark.parametrize("make", [Path.unlink, lambda path: (path.unlink(), path.mkdir())])
def test_a_missing_file_or_a_folder_in_its_place_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    entry = describe_file(tmp_path, "abc")
    make(path)
    with pytest.raises(BundleError, match="abc cannot be read"):
        read_checked(tmp_path, entry)


@pytest.mark.parametrize("through", ["file", "folder"])
def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path, through: str) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "abc").write_bytes(b"abc")
    path = "abc" if through == "file" else "linked/abc"
    (inside / path.partition("/")[0]).symlink_to(outside / "abc" if through == "file" else outside)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        read_checked(inside, describe_file(inside, path))


def test_a_link_within_the_folder_and_a_linked_folder_are_fine(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "abc").write_bytes(b"abc")
    (inside / "link").symlink_to("abc")
    (tmp_path / "door").symlink_to(inside)
    entry = describe_file(inside, "link")
    assert read_checked(tmp_path / "door", entry) == b"abc"


def test_a_half_written_manifest_never_replaces_a_whole_one(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    with pytest.raises(TypeError):
        save_manifest(manifest(provenance={"date": object()}), tmp_path)
    assert load_manifest(tmp_path) == manifest()
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_NAME]
