"""``msan sign`` and ``msan verify-signature``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from msan_runtime.bundle import find_bundle, open_bundle
from msan_runtime.manifest import MANIFEST_NAME
from msan_runtime.signature import sign_manifest

__all__ = ["sign", "verify_signature"]

screen = Console(highlight=False, soft_wrap=True, markup=False)

BundleArgument = Annotated[str, typer.Argument(help="The bundle's folder, or a shipped name.")]


def sign(
    bundle: BundleArgument,
    key: Annotated[Path, typer.Option(help="Ed25519 private key, PEM: openssl genpkey -algorithm ed25519.")],
) -> None:
    """Sign a bundle: its manifest, and with it every file that it names. An older signature is replaced."""
    folder = find_bundle(bundle)
    open_bundle(folder)  # what is damaged is not signed
    signed = sign_manifest((folder / MANIFEST_NAME).read_bytes(), key, folder)
    screen.print(f"{folder}: signed with key {signed.key_sha256[:12]}")


def verify_signature(
    bundle: BundleArgument,
    key: Annotated[Path, typer.Option(help="The signer's public key, PEM: openssl pkey -pubout.")],
) -> None:
    """Check that a bundle was signed with a key, and that no byte of it was changed since. Exit code 1 if not."""
    opened = open_bundle(bundle, public_key=key)
    screen.print(f"PASS: {opened.folder} was signed with {key}, and {len(opened.manifest.files)} files are as signed")
