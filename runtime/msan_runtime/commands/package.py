"""``msan package``: a bundle in the form that another server takes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from msan_runtime.bundle import open_bundle

__all__ = ["package"]

screen = Console(highlight=False, soft_wrap=True, markup=False)


def package(
    bundle: Annotated[str, typer.Argument(help="The bundle's folder, or a shipped name.")],
    triton: Annotated[
        Path, typer.Option(metavar="DIR", help="Model repository of NVIDIA's Triton Inference Server to write.")
    ],
    device: Annotated[Literal["gpu", "cpu"], typer.Option(help="What the server runs the models on.")] = "gpu",
    max_batch: Annotated[
        int, typer.Option(min=1, max=64, help="Pictures of one size that a run of an ONNX model takes.")
    ] = 4,
    require_signature: Annotated[
        Path | None, typer.Option(metavar="KEY.pem", help="Refuse a bundle not signed with this public key.")
    ] = None,
) -> None:
    """Write a bundle as a model repository for Triton. Models of other makers in it are left alone."""
    from msan_runtime.triton import package_for_triton

    opened = open_bundle(bundle, public_key=require_signature)
    for model in package_for_triton(opened, triton, device=device, max_batch=max_batch):
        how = " through TensorRT" if model.accelerated else ""
        screen.print(
            f"{triton / model.name}: {model.source}, {model.platform}{how}, batches of up to {model.max_batch}"
        )
    screen.print(f"Use it: tritonserver --model-repository={shlex.quote(str(triton))}")
