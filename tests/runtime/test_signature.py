"""Signatures: made and checked against OpenSSL, and refused for any change, another key, or none."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from msan_runtime.bundle import open_bundle
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import MsanError
from msan_runtime.manifest import MANIFEST_NAME
from msan_runtime.signature import SIGNATURE_NAME, SignatureError, sign_manifest

MSAN = [sys.executable, "-c", "from msan_runtime.cli import main; main()"]
Keys = tuple[Path, Path]


@pytest.fixture
def make_keys(tmp_path: Path) -> Callable[[str], Keys]:
    """A maker of key pairs by name: PEM files, private and public."""

    def make(name: str) -> Keys:
        key = ed25519.Ed25519PrivateKey.generate()
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub.pem"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return private, public

    return make


@pytest.fixture
def keys(make_keys: Callable[[str], Keys]) -> Keys:
    return make_keys("signer")


@pytest.fixture
def signed(bundle_folder: Path, keys: Keys) -> Path:
    sign_manifest((bundle_folder / MANIFEST_NAME).read_bytes(), keys[0], bundle_folder)
    return bundle_folder


def msan(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MSAN, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def test_a_signed_bundle_opens(signed: Path, keys: Keys) -> None:
    assert open_bundle(signed, public_key=keys[1]).folder == signed
    Deblurrer.load(signed, "ort-cpu", public_key=keys[1]).close()


def test_openssl_agrees(signed: Path, keys: Keys, tmp_path: Path) -> None:
    """OpenSSL checks the signature of the manifest's very bytes, and a signature that it makes is taken."""
    raw = tmp_path / "raw"
    raw.write_bytes(base64.b64decode(json.loads((signed / SIGNATURE_NAME).read_bytes())["signature"]))
    check = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", keys[1], "-rawin", "-in", signed / MANIFEST_NAME]
    assert subprocess.run([*check, "-sigfile", raw], capture_output=True, check=False).returncode == 0
    sign = ["openssl", "pkeyutl", "-sign", "-inkey", keys[0], "-rawin", "-in", signed / MANIFEST_NAME, "-out", raw]
    subprocess.run(sign, capture_output=True, check=True)
    body = json.loads((signed / SIGNATURE_NAME).read_bytes())
    (signed / SIGNATURE_NAME).write_text(json.dumps({**body, "signature": base64.b64encode(raw.read_bytes()).decode()}))
    open_bundle(signed, public_key=keys[1])


def test_an_unsigned_bundle_is_refused_where_a_signature_is_asked_for(bundle_folder: Path, keys: Keys) -> None:
    open_bundle(bundle_folder)
    with pytest.raises(SignatureError, match="is not signed"):
        open_bundle(bundle_folder, public_key=keys[1])


def test_another_key_is_refused(signed: Path, make_keys: Callable[[str], Keys]) -> None:
    with pytest.raises(SignatureError, match="signed with another key"):
        open_bundle(signed, public_key=make_keys("other")[1])


def test_a_signature_that_claims_the_right_key_is_still_checked(
    signed: Path, keys: Keys, make_keys: Callable[[str], Keys]
) -> None:
    """An attacker signs with a key of their own and writes the signer's into ``signature.json``."""
    honest = json.loads((signed / SIGNATURE_NAME).read_bytes())
    sign_manifest((signed / MANIFEST_NAME).read_bytes(), make_keys("attacker")[0], signed)
    forged = json.loads((signed / SIGNATURE_NAME).read_bytes())
    (signed / SIGNATURE_NAME).write_text(json.dumps({**forged, "public_key": honest["public_key"]}))
    with pytest.raises(SignatureError, match="changed after it was signed"):
        open_bundle(signed, public_key=keys[1])


def test_any_change_of_the_manifest_is_found(signed: Path, keys: Keys) -> None:
    path = signed / MANIFEST_NAME
    path.write_bytes(path.read_bytes() + b" ")  # the same JSON, and the digest in it still holds
    open_bundle(signed)
    with pytest.raises(SignatureError, match="changed after it was signed"):
        open_bundle(signed, public_key=keys[1])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"algorithm": "rsa"}',
        b'{"algorithm": "ed25519", "public_key": 3, "signature": "?"}',
        b"\xff",
    ],
)
def test_what_is_no_signature_is_refused(signed: Path, keys: Keys, content: bytes) -> None:
    (signed / SIGNATURE_NAME).write_bytes(content)
    with pytest.raises(SignatureError):
        open_bundle(signed, public_key=keys[1])


def test_keys_of_another_kind_are_refused_in_words(bundle_folder: Path, tmp_path: Path, keys: Keys) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path = tmp_path / "rsa.pem"
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(MsanError, match="not an Ed25519 private key"):
        sign_manifest(b"", path, bundle_folder)
    with pytest.raises(MsanError, match="is no public key in PEM"):
        open_bundle(bundle_folder, public_key=keys[0])
    with pytest.raises(MsanError, match="is no private key in PEM"):
        sign_manifest(b"", keys[1], bundle_folder)
    with pytest.raises(MsanError, match="cannot read the key"):
        sign_manifest(b"", tmp_path / "none.pem", bundle_folder)


def test_the_commands_sign_and_check(bundle_folder: Path, keys: Keys, make_keys: Callable[[str], Keys]) -> None:
    assert msan("verify-signature", bundle_folder, "--key", keys[1]).returncode == 1
    assert msan("sign", bundle_folder, "--key", keys[0]).returncode == 0
    good = msan("verify-signature", bundle_folder, "--key", keys[1])
    assert (good.returncode, good.stdout[:5]) == (0, "PASS:")
    bad = msan("verify-signature", bundle_folder, "--key", make_keys("other")[1])
    assert bad.returncode == 1
    assert "another key" in bad.stderr
    (bundle_folder / "fp32.onnx").write_bytes(b"changed")
    assert msan("verify-signature", bundle_folder, "--key", keys[1]).returncode == 2
    assert msan("sign", bundle_folder, "--key", keys[0]).returncode == 2


def test_deblur_refuses_unsigned_bundles_when_told_to(bundle_folder: Path, keys: Keys, tmp_path: Path) -> None:
    picture = Path(__file__).parents[2] / "examples" / "lighthouse-blurred.png"
    command = ("deblur", picture, "-o", tmp_path / "out.png", "--bundle", bundle_folder, "--backend", "ort-cpu")
    refused = msan(*command, "--require-signature", keys[1])
    assert refused.returncode == 1
    assert "is not signed" in refused.stderr
    assert msan("sign", bundle_folder, "--key", keys[0]).returncode == 0
    assert msan(*command, "--require-signature", keys[1]).returncode == 0
