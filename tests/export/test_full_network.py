"""The paper's network, 8,924,720 parameters, from a published-layout checkpoint to a verified bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from msan.network import MsanNetwork, parameter_count

pytestmark = pytest.mark.slow

MSAN = Path(sys.executable).with_name("msan")


def msan(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MSAN, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with λ = 0.5, saved as the authors save theirs: a plain state dict."""
    torch.manual_seed(11)
    network = MsanNetwork()
    assert parameter_count(network) == 8_924_720
    state = network.state_dict()
    for name, tensor in state.items():
        if name.endswith("gamma"):
            tensor.fill_(0.5)
    path = tmp_path_factory.mktemp("full") / "MSAN.pth"
    torch.save(state, path)
    return path


def test_deploy_verify_and_deblur(checkpoint: Path) -> None:
    bundle = checkpoint.with_name("bundle")
    deployed = msan("deploy", checkpoint, "-o", bundle, "--gpu", "rtx30,rtx40,rtx50")
    assert deployed.returncode == 0, deployed.stderr
    manifest = json.loads((bundle / "manifest.json").read_text())
    # Counted on the published network: 192 convolutions (Q, K and V as one: 184), 12 transposed, 4 attentions.
    assert manifest["engines"][0]["layer_types"] == {
        "attention fp16": 4,
        "convolution fp16": 184,
        "deconvolution fp16": 12,
    }
    verified = msan("verify", checkpoint, bundle, "--quick")
    assert verified.returncode == 0, verified.stdout
    sample = Path(__file__).parents[2] / "export" / "msan_export" / "samples" / "odd.jpg"
    assert msan("deblur", sample, "-o", checkpoint.with_name("out"), "--bundle", bundle).returncode == 0
