"""Where a bundle comes from: its schema, its recipe, its self-test, and making it again."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

import msan_runtime
from msan.checkpoint import Checkpoint
from msan_calib.calibrate import CalibrationOptions
from msan_calib.samples import SampleOptions
from msan_export.engine import EngineSpec
from msan_export.recipe import Recipe
from msan_export.reproduction import reproduce
from msan_runtime.attention import Attention
from msan_runtime.bundle import open_bundle, shipped_bundles
from msan_runtime.errors import BundleError, MsanError
from msan_runtime.manifest import MANIFEST_NAME, Profile, describe_file, load_manifest, save_manifest
from msan_runtime.targets import capabilities_named

SCHEMA = json.loads((Path(msan_runtime.__file__).parent / "schemas" / "manifest-2.schema.json").read_bytes())


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def body_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / MANIFEST_NAME).read_bytes())


def test_manifests_follow_the_published_schema(tiny_bundle: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for folder in (tiny_bundle, *shipped_bundles().values()):
        jsonschema.validate(body_of(folder), SCHEMA)


@pytest.mark.parametrize(
    ("key", "value"),
    [("schema_version", 1), ("graphs", {}), ("files", [{"path": "a"}]), ("attention", "some"), ("more", 1)],
)
def test_the_schema_refuses_what_the_runtime_refuses(tiny_bundle: Path, key: str, value: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**body_of(tiny_bundle), key: value}, SCHEMA)


def test_a_manifest_says_how_it_was_made(tiny_bundle: Path, tiny: Checkpoint) -> None:
    provenance = load_manifest(tiny_bundle).provenance
    assert provenance["checkpoint_sha256"] == tiny.sha256
    assert provenance["reproduce"].startswith(f"msan deploy {tiny.path.name} -o BUNDLE --gpu ")
    assert "checks passed" in provenance["verified"]


def test_the_self_test_is_what_pytorch_gives(tiny_bundle: Path, tiny: Checkpoint) -> None:
    import torch

    from msan.checkpoint import network_from_checkpoint

    test = load_manifest(tiny_bundle).self_test
    assert test is not None
    blurred, deblurred = (
        np.asarray(Image.open(tiny_bundle / path)).astype(np.float32) for path in (test.blurred, test.deblurred)
    )
    network = network_from_checkpoint(tiny, Attention.parse(load_manifest(tiny_bundle).attention))
    with torch.inference_mode():
        picture = network(torch.from_numpy(blurred).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0)
    np.testing.assert_array_equal(deblurred, (picture.clamp(0, 1) * 255).round().numpy())
    assert blurred.std() > 5


@pytest.mark.parametrize("calibrated", [False, True])
def test_recipes_come_back_from_the_manifest(calibrated: bool) -> None:
    profile = Profile(min=(1, 8, 16), opt=(2, 64, 72), max=(3, 640, 648))
    spec = EngineSpec(profile=profile, capabilities=capabilities_named("rtx30,sm_121"))
    options = CalibrationOptions(precision="fp8", budget_db=0.07, margin=3.3, method="entropy", correct_bias=False)
    recipe = Recipe(
        engine=spec,
        attention=Attention.parse("window:192"),
        calibration=options if calibrated else None,
        samples=("mine", SampleOptions(count=3, size_px=64, seed=9), "a" * 64) if calibrated else None,
    )
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert ("--samples mine" in recipe.command("X.pth")) is calibrated


@pytest.mark.parametrize("change", [{"gpu": "9.9.9"}, {"min": "8"}, {"attention": "?"}, {"flavour": None}])
def test_recipes_that_make_no_sense_are_refused(tiny_bundle: Path, change: dict[str, str | None]) -> None:
    told = {key: value for key, value in {**load_manifest(tiny_bundle).recipe, **change}.items() if value is not None}
    with pytest.raises(MsanError, match=r"recipe|GPU|attention"):
        Recipe.from_dict(told)


@pytest.mark.slow
def test_a_bundle_is_made_again(bundle: Path, tiny: Checkpoint) -> None:
    found = reproduce(open_bundle(bundle), tiny.path)
    assert found.passed, found
    assert {one.subject for one in found.comparisons} >= {graph.path for graph in load_manifest(bundle).graphs}
    assert not found.other_versions


def test_a_bundle_with_another_graph_is_told(bundle: Path, tiny: Checkpoint) -> None:
    """A graph was replaced, and the manifest written anew around it: every hash in it holds."""
    manifest = load_manifest(bundle)
    first, second = manifest.graphs[0], manifest.graphs[1]
    shutil.copyfile(bundle / second.path, bundle / first.path)
    files = tuple(describe_file(bundle, file.path) for file in manifest.files)
    save_manifest(dataclasses.replace(manifest, files=files, versions={"torch": "1.0"}), bundle)
    found = reproduce(open_bundle(bundle), tiny.path)
    assert [one.subject for one in found.comparisons if not one.same] == [first.path]
    assert found.other_versions["torch"].startswith("1.0 → ")


def test_another_checkpoint_or_none_is_refused(bundle: Path, tiny: Checkpoint) -> None:
    from msan.checkpoint import find_checkpoint

    with pytest.raises(BundleError, match="is not the checkpoint of the bundle"):
        reproduce(open_bundle(bundle), find_checkpoint("msan-s"))
    with pytest.raises(BundleError, match=f"made from {tiny.path.name}, which is not here"):
        reproduce(open_bundle(bundle))


def test_a_bundle_of_schema_1_cannot_say_how_it_was_made(bundle: Path, tiny: Checkpoint) -> None:
    save_manifest(dataclasses.replace(load_manifest(bundle), recipe={}), bundle)
    with pytest.raises(BundleError, match="says not how it was made"):
        reproduce(open_bundle(bundle), tiny.path)


@pytest.mark.slow
def test_the_command_finds_the_checkpoint_beside_the_bundle(bundle: Path, tiny: Checkpoint) -> None:
    shutil.copyfile(tiny.path, bundle.parent / tiny.path.name)
    command = [sys.executable, "-c", "from msan_runtime.cli import main; main()", "reproduce", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "PASS: made again" in done.stdout
