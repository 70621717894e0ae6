"""Opening bundles: every file is checked, and what is wrong is said with the file's name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from msan_runtime.bundle import Bundle, find_bundle, open_bundle, shipped_bundles
from msan_runtime.errors import BundleError
from msan_runtime.manifest import (
    MANIFEST_NAME,
    EngineEntry,
    GraphEntry,
    Manifest,
    Profile,
    describe_file,
    load_manifest,
    save_manifest,
)


def bundle_with(folder: Path, *graphs: tuple[str, str, str]) -> Bundle:
    """A bundle whose graphs are text files, by (path, precision, io)."""
    for path, _, _ in graphs:
        (folder / path).write_text(path)
    (folder / "engine.rtx").write_text("engine")
    engine = EngineEntry(
        path="engine.rtx",
        flavour="tensorrt-rtx",
        flavour_version="1.7.1",
        compute_capabilities=("8.6",),
        profile=Profile(min=(1, 64, 64), opt=(1, 64, 64), max=(1, 64, 64)),
        precision="fp16",
        layer_types={},
        graph=graphs[0][0],
    )
    manifest = Manifest(
        name="several",
        spec={},
        contract_version=1,
        graphs=tuple(GraphEntry(path=path, precision=precision, io=io, opset=23) for path, precision, io in graphs),  # pyright: ignore[reportArgumentType]
        engines=(engine,),
        files=tuple(describe_file(folder, path) for path in (*(graph[0] for graph in graphs), "engine.rtx")),
        versions={},
        provenance={},
    )
    save_manifest(manifest, folder)
    return open_bundle(folder)


def test_a_whole_bundle_opens_and_gives_its_files(bundle_folder: Path, inverting_graph: bytes) -> None:
    bundle = open_bundle(bundle_folder)
    assert bundle.manifest == load_manifest(bundle_folder)
    assert bundle.read("fp32.onnx") == inverting_graph


def test_a_bundle_can_be_moved(bundle_folder: Path, tmp_path: Path, inverting_graph: bytes) -> None:
    moved = tmp_path / "elsewhere" / "renamed bundle"
    shutil.copytree(bundle_folder, moved)
    shutil.rmtree(bundle_folder)
    assert open_bundle(moved).read("fp32.onnx") == inverting_graph


def test_a_missing_file_is_named(bundle_folder: Path) -> None:
    (bundle_folder / "fp32.onnx").unlink()
    with pytest.raises(BundleError, match=r"fp32\.onnx cannot be read: No such file"):
        open_bundle(bundle_folder)


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_changed_byte_of_a_file_is_noticed(bundle_folder: Path, position: int) -> None:
    path = bundle_folder / "fp32.onnx"
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"fp32\.onnx was changed since the bundle was made"):
        open_bundle(bundle_folder)


def test_a_file_changed_after_opening_is_noticed_when_read(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    (bundle_folder / "fp32.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="was changed"):
        bundle.read("fp32.onnx")


def test_a_link_out_of_the_bundle_is_refused_even_with_the_right_content(bundle_folder: Path, tmp_path: Path) -> None:
    path = bundle_folder / "fp32.onnx"
    path.rename(tmp_path / "outside.onnx")
    path.symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        open_bundle(bundle_folder)


def test_files_that_the_manifest_does_not_name_do_no_harm(bundle_folder: Path) -> None:
    (bundle_folder / "notes.txt").write_text("mine")
    open_bundle(bundle_folder)


@pytest.mark.parametrize("name", ["no-such-bundle", "a/b", ""])
def test_an_unknown_bundle_is_an_error_that_says_which_are_shipped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=r"no bundle at .*Shipped bundles|is not a bundle"):
        open_bundle(name)


def test_a_file_is_not_a_bundle(bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        open_bundle(bundle_folder / MANIFEST_NAME)


def test_a_shipped_bundle_is_found_by_its_name(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    shutil.copytree(bundle_folder, tmp_path / "models" / "msan-s")
    (tmp_path / "models" / "not-a-bundle").mkdir()
    monkeypatch.setattr("msan_runtime.bundle.MODELS", tmp_path / "models")
    monkeypatch.chdir(bundle_folder)
    assert shipped_bundles() == {"msan-s": tmp_path / "models" / "msan-s"}
    assert find_bundle("msan-s") == tmp_path / "models" / "msan-s"
    assert open_bundle().manifest.name == "tiny"


@pytest.mark.parametrize("name", shipped_bundles())
def test_a_shipped_bundle_opens(name: str) -> None:
    assert open_bundle(name).folder == shipped_bundles()[name]


@pytest.mark.parametrize(
    ("prefer", "path"),
    [(("fp16", "fp32"), "half"), (("fp32", "fp16"), "full"), (("fp32",), "full")],
)
def test_the_graph_of_the_preferred_precision_is_taken(tmp_path: Path, prefer: tuple[str, ...], path: str) -> None:
    bundle = bundle_with(tmp_path, ("float", "fp32", "float32"), ("full", "fp32", "uint8"), ("half", "fp16", "uint8"))
    graph = bundle.graph(prefer=prefer)
    assert graph is not None
    assert graph.path == path


def test_graphs_of_float_pictures_or_other_precision_are_not_taken(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, ("float", "fp32", "float32"), ("half", "fp16", "uint8"))
    assert bundle.graph(prefer=("fp32",)) is None


def test_graphs_of_float_pictures_are_taken_if_asked_for(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, ("full", "fp32", "uint8"), ("float", "fp32", "float32"))
    graph = bundle.graph(prefer=("fp16", "fp32"), io="float32")
    assert graph is not None
    assert graph.path == "float"
    assert bundle.graph(prefer=("fp16",), io="float32") is None


def test_a_bundle_without_a_float_graph_has_none_to_give(tmp_path: Path) -> None:
    assert bundle_with(tmp_path, ("full", "fp32", "uint8")).graph(prefer=("fp32",), io="float32") is None


def test_an_engine_is_found_by_its_flavour(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path, ("full", "fp32", "uint8"))
    engine = bundle.engine("tensorrt-rtx")
    assert engine is not None
    assert bundle.read(engine.path) == b"engine"
    assert bundle.engine("tensorrt") is None
