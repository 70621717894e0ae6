"""Networks of other makers go the same way: checkpoint, graph, types, engine, verification, picture."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from tests.export import networks
from tests.export.conftest import Exporter
from tests.export.tampering import change_initializer, failures, rehash
from torch import nn

from msan_calib.samples import SampleOptions, choose_samples
from msan_export.acceptance.cases import sample_cases, sized
from msan_export.acceptance.verdict import Case
from msan_export.acceptance.verify import QUICK, verify_bundle
from msan_export.bundle import Calibration, deploy
from msan_export.engine import EngineSpec
from msan_export.foreign import ForeignError, ForeignNetwork, load_foreign
from msan_export.onnx import onnx_from_checkpoint
from msan_export.reproduction import reproduce
from msan_export.source import attention_of, load_source
from msan_runtime import Deblurrer
from msan_runtime.attention import GLOBAL
from msan_runtime.backends import ort
from msan_runtime.backends.base import Backend, TileLimits
from msan_runtime.bundle import open_bundle
from msan_runtime.contract import PictureArray
from msan_runtime.errors import BundleError, MissingExtraError, MsanError
from msan_runtime.manifest import load_manifest
from msan_runtime.targets import capabilities_named
from msan_runtime.tiling import TiledRunner

PHOTOGRAPH = sample_cases()[0].picture
CASES = [Case(name="small", picture=sized(PHOTOGRAPH, 61, 84))]
FACTORIES: dict[str, Callable[[], nn.Module]] = {
    "unet": networks.unet,
    "nafnet": networks.nafnet,
    "levels": networks.levels,
}


def saved(name: str, folder: Path) -> Path:
    """Random weights, and statistics that normalisation does not leave as they are."""
    torch.manual_seed(5)
    module = FACTORIES[name]()
    for key, buffer in module.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        if key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    path = folder / f"{name}.pth"
    torch.save({"params": module.state_dict()}, path)
    return path


@pytest.fixture(scope="module", params=["unet", "nafnet"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ForeignNetwork:
    path = saved(request.param, tmp_path_factory.mktemp("foreign"))
    return load_foreign(path, arch=f"tests.export.networks:{request.param}")


@pytest.fixture(scope="module")
def deployed(network: ForeignNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = EngineSpec(capabilities=capabilities_named("rtx30"))
    folder = tmp_path_factory.mktemp("bundles") / network.spec.name
    return deploy(network, folder, spec, CASES, attention=GLOBAL).folder


def expected_picture(network: ForeignNetwork, picture: np.ndarray) -> np.ndarray:
    """The network on the picture, its edge repeated to the next multiple: with NumPy and the bare module."""
    height, width = picture.shape[:2]
    short = [(0, -side % network.multiple) for side in (height, width)]
    padded = np.pad(picture, [*short, (0, 0)], mode="edge").astype(np.float32) / 255
    with torch.inference_mode():
        given = network.module(torch.from_numpy(padded)[None].permute(0, 3, 1, 2))
    levels = given[0, :, :height, :width].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    return np.rint(levels).astype(np.uint8)


def test_the_multiple_is_the_modules_own_or_found(network: ForeignNetwork) -> None:
    assert network.multiple == {"unet": 8, "nafnet": 16}[network.spec.name]
    # The gated block doubles its channels at full size.
    assert network.spec.base_channels == {"unet": 8, "nafnet": 16}[network.spec.name]


def test_the_bundle_gives_the_networks_picture_at_every_size(network: ForeignNetwork, deployed: Path) -> None:
    with Deblurrer.load(deployed, "ort-cpu") as deblurrer:
        for height, width in ((1, 1), (8, 8), (37, 91), (48, 40), (64, 96)):
            picture = sized(PHOTOGRAPH, height, width)
            apart = deblurrer.deblur(picture).astype(int) - expected_picture(network, picture)
            assert np.abs(apart).max() <= 1, (height, width)


def test_the_engine_has_the_types_that_were_asked_for(network: ForeignNetwork, deployed: Path) -> None:
    (engine,) = load_manifest(deployed).engines
    assert all(kind.endswith("fp16") for kind in engine.layer_types)
    convolutions = sum(isinstance(part, nn.Conv2d) for part in network.module.modules())
    assert engine.layer_types["convolution fp16"] == convolutions


def test_the_manifest_names_what_made_it(network: ForeignNetwork, deployed: Path) -> None:
    manifest = load_manifest(deployed)
    assert manifest.recipe["arch"] == network.arch
    assert manifest.spec == {"base_channels": network.spec.base_channels, "attention": False}
    assert f"--arch {network.arch}" in manifest.provenance["reproduce"]
    assert "--attention" not in manifest.provenance["reproduce"]


def test_a_changed_weight_is_found(network: ForeignNetwork, deployed: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(deployed, tmp_path / "bundle"))
    path = next(bundle.glob("*.fp32.onnx"))
    names = [tensor.name for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 4]

    def flip(values: np.ndarray) -> None:
        values.flat[3] = -values.flat[3]

    change_initializer(path, names[1], flip)
    rehash(bundle, path)
    report = verify_bundle(network, bundle, CASES, QUICK)
    assert ("fp32.onnx", "weights") in failures(report)
    assert verify_bundle(network, deployed, CASES, QUICK).passed


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> ForeignNetwork:
    return load_foreign(saved("levels", tmp_path_factory.mktemp("levels")), arch="tests.export.networks:levels")


@pytest.fixture(scope="module")
def kept(levels: ForeignNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a network, of which calibration keeps convolutions in FP32."""
    calibration = Calibration(samples=choose_samples(options=SampleOptions(count=2, size_px=64)))
    folder = tmp_path_factory.mktemp("bundles") / "levels"
    spec = EngineSpec(capabilities=capabilities_named("rtx30"))
    return deploy(levels, folder, spec, CASES, attention=GLOBAL, calibration=calibration).folder


def convolution_weights(path: Path) -> dict[bool, str]:
    """Of a weight in FP32, and of one in FP16, the name: by whether it is FP16."""
    tensors = [tensor for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 4]
    return {tensor.data_type == onnx.TensorProto.FLOAT16: tensor.name for tensor in tensors}


def test_a_network_that_needs_fp32_convolutions_is_deployed(levels: ForeignNetwork, kept: Path) -> None:
    (engine,) = load_manifest(kept).engines
    assert engine.layer_types["convolution fp32"] > 0
    assert set(convolution_weights(next(kept.glob("*.fp16.onnx")))) == {False, True}
    assert verify_bundle(levels, kept, CASES, QUICK).passed


@pytest.mark.parametrize("half", [False, True])
def test_a_weight_changed_in_a_graph_of_both_types_is_found(
    half: bool, levels: ForeignNetwork, kept: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(kept, tmp_path / "bundle"))
    path = next(bundle.glob("*.fp16.onnx"))

    def nudge(values: np.ndarray) -> None:
        values.flat[3] = np.nextafter(values.flat[3], values.dtype.type(9))

    change_initializer(path, convolution_weights(path)[half], nudge)
    rehash(bundle, path)
    assert ("fp16.onnx", "weights") in failures(verify_bundle(levels, bundle, CASES, QUICK))


def test_the_graph_says_nothing_of_sub_networks(network: ForeignNetwork, deployed: Path) -> None:
    report = verify_bundle(network, deployed, CASES, QUICK)
    assert {check.quantity for check in report.checks if check.section == "tensors"} == {"float"}


def test_the_wrong_network_is_told_by_its_weights(tmp_path: Path) -> None:
    path = saved("unet", tmp_path)
    with pytest.raises(ForeignError, match="are not those of the network"):
        load_foreign(path, arch="tests.export.networks:nafnet")


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "unet.safetensors"
    safetensors.torch.save_file(networks.unet().state_dict(), path)
    assert load_foreign(path, arch="tests.export.networks:unet").spec.name == "unet"


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("tests.export.networks", "is package.module:factory"),
        (":unet", "is package.module:factory"),
        ("tests.export.networks:absent", "is not found"),
        ("no.such.package:unet", "is not found"),
        ("tests.export.networks:not_a_module", "gives a str, not a torch.nn.Module"),
        ("tests.export.networks:Broken", "the factory failed, ValueError: no picture"),
        ("tests.export.networks:doubling", "of the same size"),
        ("tests.export.networks:ending", r"the factory ended the program \(exit code 3\)"),
    ],
)
def test_what_is_no_network_from_picture_to_picture_is_refused(
    arch: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> nn.Module:
        raise ValueError("no picture")

    monkeypatch.setattr(networks, "Broken", broken, raising=False)
    path = tmp_path / "weights.pth"
    torch.save(networks.doubling().state_dict(), path)
    with pytest.raises(ForeignError, match=words):
        load_foreign(path, arch=arch)


def test_a_module_that_says_nonsense_of_its_multiple_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks.NafNet, "size_multiple", "16")
    with pytest.raises(ForeignError, match="size_multiple is a whole number"):
        load_foreign(saved("nafnet", tmp_path), arch="tests.export.networks:nafnet")


def unshuffled(monkeypatch: pytest.MonkeyPatch, folder: Path, module: nn.Module) -> ForeignNetwork:
    """``module`` by the door of a factory and a file."""
    monkeypatch.setattr(networks, "made", lambda: module, raising=False)
    path = folder / "made.pth"
    torch.save(module.state_dict(), path)
    return load_foreign(path, arch="tests.export.networks:made")


def test_every_multiple_up_to_128_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for factor in range(1, 129):
        found = unshuffled(monkeypatch, tmp_path, networks.Unshuffled(factor))
        assert (found.multiple, found.spec.base_channels) == (factor, 3)


@pytest.mark.parametrize("factor", [12, 100])
def test_pictures_are_padded_to_multiples_that_have_no_8(
    factor: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network = unshuffled(monkeypatch, tmp_path, networks.Unshuffled(factor))
    session: Any = ort.open_session(
        onnx_from_checkpoint(network, io="uint8").SerializeToString(), ort.PROVIDERS["ort-cpu"]
    )
    for height, width in ((8, 8), (24, 40), (112, 200)):
        picture = sized(PHOTOGRAPH, height, width)
        (given,) = session.run(None, {"blurred": picture[None]})
        assert np.abs(given[0].astype(int) - expected_picture(network, picture)).max() <= 1, (height, width)


def test_a_multiple_that_is_not_tried_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = r"multiples of 48, but not of 8, 16, 32, 64, 128: set size_multiple = 48 on the module"
    with pytest.raises(ForeignError, match=words):
        unshuffled(monkeypatch, tmp_path, networks.Unshuffled(48, told=False))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(bad: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = networks.unet()
    with torch.no_grad():
        module.get_parameter("last.bias")[1] = bad
    with pytest.raises(ForeignError, match=r"of 24×40 px: tensor 'last\.bias' of its weights holds NaN"):
        unshuffled(monkeypatch, tmp_path, module)


def test_a_branch_on_values_is_told_in_two_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = unshuffled(monkeypatch, tmp_path, networks.branching())
    with pytest.raises(ForeignError, match=r"cannot be exported by torch\.onnx\.export") as told:
        onnx_from_checkpoint(network, io="uint8")
    assert str(told.value).count("\n") == 1
    assert "docs/other-networks.md" in str(told.value)
    assert told.value.exit_code == 2
    assert capfd.readouterr() == ("", "")


def test_what_the_network_raises_is_told_as_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ForeignError) as told:
        unshuffled(monkeypatch, tmp_path, networks.failing())
    words = "the network failed on a grey picture of 24×40 px, RuntimeError: no weights for 3 channels"
    assert str(told.value) == f"tests.export.networks:made: {words}"


def test_a_network_of_one_size_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ForeignError, match=r"the network failed on a grey picture of 64×64 px, RuntimeError: .*size"):
        unshuffled(monkeypatch, tmp_path, networks.OneSize())


def test_an_interrupted_factory_stays_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted() -> nn.Module:
        raise KeyboardInterrupt

    monkeypatch.setattr(networks, "interrupted", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        load_foreign(saved("unet", tmp_path), arch="tests.export.networks:interrupted")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit(4)", r"importing a_script ended the program \(exit code 4\)"),
        ("1 / 0", "importing a_script failed, ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_fails_on_import_is_told(
    code: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a_script.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ForeignError, match=words):
        load_foreign(saved("unet", tmp_path), arch="a_script:network")


def test_a_file_of_another_network_names_the_options(tmp_path: Path) -> None:
    path = saved("unet", tmp_path)
    with pytest.raises(MsanError, match="--arch MODULE:FACTORY"):
        load_source(str(path))
    with pytest.raises(ForeignError, match="no file of weights"):
        load_source(str(tmp_path / "none.pth"), arch="tests.export.networks:unet")


def test_attention_of_another_network_cannot_be_chosen(network: ForeignNetwork) -> None:
    assert attention_of(network, None) == GLOBAL
    with pytest.raises(MsanError, match="a setting of MSAN alone"):
        attention_of(network, "global")


def test_a_bundle_is_made_again_only_with_the_code_that_is_named(network: ForeignNetwork, deployed: Path) -> None:
    with pytest.raises(BundleError, match="if you trust the code that it names"):
        reproduce(open_bundle(deployed), network.path)
    with pytest.raises(BundleError, match="the bundle is of MSAN: leave out x:y"):
        reproduce(open_bundle(), arch="x:y")


def test_what_tiles_change_is_warned_of_and_written_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, network: ForeignNetwork, deployed: Path
) -> None:
    spec = EngineSpec(capabilities=capabilities_named("rtx30"))
    normalised = unshuffled(monkeypatch, tmp_path, networks.Normalised())
    said: list[str] = []
    made = deploy(normalised, tmp_path / "bundle", spec, sample_cases()[:1], attention=GLOBAL, on_step=said.append)
    (warning,) = (line for line in said if line.startswith("warning: "))
    assert made.manifest.provenance["tiles"] in warning
    levels = re.search(r"by up to (\d+) of 255 levels", warning)
    assert levels is not None
    assert int(levels[1]) == tiles_apart(normalised.module)
    told = load_manifest(deployed).provenance["tiles"]
    assert told.startswith("a sample of 520×776 px in tiles of 256×320 px differs"), network.arch


def tiles_apart(module: nn.Module) -> int:
    """In levels, how far the sample is in tiles from itself whole: through the runtime, on a backend of its own."""
    picture = sized(PHOTOGRAPH, 520, 776)

    class Bare(Backend):
        name, device, limits = "bare", "PyTorch", TileLimits(area_px=520 * 776)

        def infer(self, tiles: PictureArray) -> PictureArray:
            with torch.inference_mode():
                given = module(torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255)
            return (given.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    whole, tiled = (next(TiledRunner(Bare(), tile=tile).run((picture,))) for tile in (None, (256, 320)))
    return int(np.abs(whole.astype(int) - tiled).max())


# spandrel is not installed where these tests are run: it needs a torchvision that fits the release of PyTorch.


class Descriptor(SimpleNamespace):
    """What spandrel's loader gives."""


def loaded_by_spandrel(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    torch.manual_seed(1)
    told = {
        "model": networks.nafnet(),
        "input_channels": 3,
        "output_channels": 3,
        "scale": 1,
        "size_requirements": SimpleNamespace(multiple_of=16),
    }

    class ModelLoader:
        def __init__(self, device: str) -> None:
            assert device == "cpu"

        def load_from_file(self, path: Path) -> Descriptor:
            assert path.is_file()
            return Descriptor(**{**told, **changes})

    module: Any = ModuleType("spandrel")
    module.ModelLoader = ModelLoader
    monkeypatch.setitem(sys.modules, "spandrel", module)


def test_a_descriptor_of_spandrel_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded_by_spandrel(monkeypatch)
    found = load_foreign(saved("nafnet", tmp_path), loader="spandrel")
    assert (found.arch, found.multiple, found.spec.name) == ("spandrel", 16, "nafnet")


@pytest.mark.parametrize("changes", [{"scale": 4}, {"input_channels": 1}, {"output_channels": 4}])
def test_networks_of_other_channels_or_scales_are_refused(
    changes: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded_by_spandrel(monkeypatch, **changes)
    with pytest.raises(ForeignError, match="only such from 3 to 3 channels that keep a picture's size"):
        load_foreign(saved("nafnet", tmp_path), loader="spandrel")


def test_without_spandrel_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(MissingExtraError, match=r"msan\[spandrel\]"):
        load_foreign(saved("unet", tmp_path), loader="spandrel")


def test_a_network_padded_in_the_graph_is_exported_for_every_batch(
    network: ForeignNetwork, remembered_export: Exporter
) -> None:
    model = remembered_export(network, io="float32", attention=GLOBAL)
    session: Any = ort.open_session(model.SerializeToString(), ort.PROVIDERS["ort-cpu"])
    batch = np.random.default_rng(2).random((3, 24, 40, 3), np.float32)
    (given,) = session.run(None, {"blurred": batch})
    padded = torch.from_numpy(
        np.pad(batch, ((0, 0), (0, -24 % network.multiple), (0, -40 % network.multiple), (0, 0)), mode="edge")
    )
    with torch.inference_mode():
        expected = network.module(padded.permute(0, 3, 1, 2))[:, :, :24, :40].clamp(0, 1).permute(0, 2, 3, 1)
    assert np.abs(given - expected.numpy()).max() < 1e-5
    told = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(told["msan.spec"]) == network.spec.to_dict()
