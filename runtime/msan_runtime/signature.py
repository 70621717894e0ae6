"""Ed25519 signatures of bundles (RFC 8032), through the package ``cryptography``.

What is signed are the bytes of ``manifest.json``, which names every other file with its SHA-256. The signature lies
beside it in ``signature.json``; it is no part of the manifest.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msan_runtime.atomic import write_text
from msan_runtime.errors import BundleError, CheckFailedError, MissingExtraError, MsanError

__all__ = ["SIGNATURE_NAME", "SignatureError", "Signed", "check_private_key", "check_signature", "sign_manifest"]

SIGNATURE_NAME = "signature.json"
ALGORITHM = "ed25519"
EXTRA = "sign"


class SignatureError(CheckFailedError):
    """A bundle that is not signed, or not by that key, or was changed after it was signed."""


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A signature that was found good: SHA-256 of the signer's public key (raw, 32 bytes), hexadecimal."""

    key_sha256: str


def sign_manifest(manifest: bytes, private_key: Path, folder: Path) -> Signed:
    """Sign ``manifest``, the bytes of a bundle's ``manifest.json``; write ``signature.json`` into ``folder``.

    Args:
        manifest: what is signed.
        private_key: PEM file of an Ed25519 private key, as ``openssl genpkey -algorithm ed25519`` writes it.
        folder: of the bundle.

    Raises:
        MsanError: if the key cannot be read or is of another kind.
        MissingExtraError: if ``cryptography`` is not installed.
    """
    key = _private_key(private_key)
    raw = key.public_key().public_bytes_raw()
    body = {
        "algorithm": ALGORITHM,
        "public_key": base64.b64encode(raw).decode(),
        "signature": base64.b64encode(key.sign(manifest)).decode(),
    }
    write_text(folder / SIGNATURE_NAME, json.dumps(body, indent=2) + "\n")
    return Signed(key_sha256=hashlib.sha256(raw).hexdigest())


def check_signature(manifest: bytes, folder: Path, public_key: Path) -> Signed:
    """Whether ``manifest`` was signed with the private half of ``public_key``, a PEM file.

    The key that ``signature.json`` names is not trusted: it only tells which one was used.

    Raises:
        SignatureError: if there is no signature, or it is not of that key and these bytes.
        MsanError: if the key cannot be read.
        MissingExtraError: if ``cryptography`` is not installed.
    """
    key = _public_key(public_key)
    raw: bytes = key.public_bytes_raw()
    named, signature = _read(folder)
    if named != raw:
        raise SignatureError(
            f"{folder} was signed with another key ({_short(named)}…) than {public_key} ({_short(raw)}…): "
            "ask whoever gave you the bundle for their key"
        )
    if not _is_good(key, signature, manifest):
        raise SignatureError(f"{folder} was changed after it was signed: do not use it")
    return Signed(key_sha256=hashlib.sha256(raw).hexdigest())


def check_private_key(path: Path) -> None:
    """Whether ``path`` is a key that can sign.

    Raises:
        MsanError, MissingExtraError: as :func:`sign_manifest`.
    """
    _private_key(path)


def _is_good(key: Any, signature: bytes, manifest: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        return False
    return True


def _read(folder: Path) -> tuple[bytes, bytes]:
    """The public key and the signature in ``signature.json``."""
    path = folder / SIGNATURE_NAME
    try:
        body: Any = json.loads(path.read_bytes())
        if body["algorithm"] != ALGORITHM:
            raise SignatureError(f"{path} is a signature by {body['algorithm']!r}, this msan knows {ALGORITHM}")
        return _decoded(body["public_key"]), _decoded(body["signature"])
    except FileNotFoundError as error:
        raise SignatureError(
            f"{folder} is not signed: it has no {SIGNATURE_NAME}. Who made it signs it with: msan sign"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise SignatureError(f"{path} is no signature: {error}") from error


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _short(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:12]


def _private_key(path: Path) -> Any:
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_private_key(_bytes(path), password=None)
    except (ValueError, TypeError) as error:
        raise MsanError(
            f"{path} is no private key in PEM without a password: {error}. "
            "Make one with: openssl genpkey -algorithm ed25519 -out key.pem"
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise MsanError(f"{path} is a {type(key).__name__}, not an Ed25519 private key")
    return key


def _public_key(path: Path) -> Any:
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_public_key(_bytes(path))
    except ValueError as error:
        raise MsanError(
            f"{path} is no public key in PEM: {error}. Take it from the private one: "
            "openssl pkey -in key.pem -pubout -out key.pub.pem"
        ) from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise MsanError(f"{path} is a {type(key).__name__}, not an Ed25519 public key")
    return key


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read the key {path}: {error.strerror or error}") from error


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise MissingExtraError("cryptography", EXTRA) from error
    return serialization, ed25519
