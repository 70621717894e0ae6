"""The recipe of a bundle: every option that it depends on, as strings of its manifest, and back again."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from msan_calib.calibrate import CalibratedPrecision, CalibrationOptions
from msan_calib.samples import SampleOptions, SampleSet
from msan_calib.scales import RangeMethod
from msan_export.engine import EngineSpec, Flavour
from msan_runtime.attention import Attention
from msan_runtime.errors import BundleError
from msan_runtime.manifest import Profile
from msan_runtime.targets import capabilities_named

__all__ = ["Recipe", "arch_options", "git_commit", "recipe_of"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a bundle is made with, beside its checkpoint.

    Attributes:
        engine: what was built.
        attention: of every graph.
        calibration: how types were decided; ``None`` where they follow from the form of the network alone.
        samples: source, options and SHA-256 of the samples that they were decided on.
        arch: of a network of another maker, ``package.module:factory`` or the name of a loader; ``None`` of MSAN.
    """

    engine: EngineSpec
    attention: Attention
    calibration: CalibrationOptions | None = None
    samples: tuple[str, SampleOptions, str] | None = None
    arch: str | None = None

    def to_dict(self) -> dict[str, str]:
        """As the manifest holds it: the names are those of the options of ``msan deploy``."""
        profile = self.engine.profile
        told = {
            "gpu": ",".join(str(capability) for capability in self.engine.capabilities),
            "flavour": self.engine.flavour,
            **{name: "x".join(map(str, getattr(profile, name))) for name in ("min", "opt", "max")},
            "attention": str(self.attention),
            **({} if self.arch is None else {"arch": self.arch}),
        }
        if self.calibration is not None and self.samples is not None:
            options, (source, sampling, sha256) = self.calibration, self.samples
            told |= {
                "precision": options.precision,
                "budget": f"{options.budget_db!r}dB",
                "least_psnr": repr(options.least_psnr_db),
                "margin": repr(options.margin),
                "method": options.method,
                "correct_bias": str(options.correct_bias).lower(),
                "samples": source,
                "samples_count": str(sampling.count),
                "samples_size": str(sampling.size_px),
                "samples_seed": str(sampling.seed),
                "samples_sha256": sha256,
            }
        return told

    @classmethod
    def from_dict(cls, told: Mapping[str, str]) -> Recipe:
        """The recipe in a manifest.

        Raises:
            BundleError: if there is none, or it cannot be read.
        """
        if not told:
            raise BundleError("the bundle says not how it was made (schema 1): deploy the checkpoint again")
        try:
            profile = Profile(**{name: _shape(told[name]) for name in ("min", "opt", "max")})
            spec = EngineSpec(
                flavour=cast(Flavour, told["flavour"]), profile=profile, capabilities=capabilities_named(told["gpu"])
            )
            recipe = cls(engine=spec, attention=Attention.parse(told["attention"]), arch=told.get("arch"))
            return recipe if "precision" not in told else _with_calibration(recipe, told)
        except (KeyError, ValueError, TypeError) as error:
            raise BundleError(f"the bundle's recipe cannot be read: {error!r}. Deploy the checkpoint again") from error

    def command(self, checkpoint: str) -> str:
        """The ``msan deploy`` command that makes the bundle."""
        told = self.to_dict()
        sizes = {name: told[name].partition("x")[2] for name in ("min", "opt", "max")}
        network = {"attention": told["attention"]} if self.arch is None else arch_options(self.arch)
        options = {"gpu": told["gpu"], "flavour": told["flavour"], **sizes, **network}
        options |= {name: told[name] for name in ("precision", "budget") if name in told}
        if told.get("samples", "shipped") != "shipped":
            options["samples"] = told["samples"]
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return shlex.join(["msan", "deploy", checkpoint, "-o", "BUNDLE", *words])


def arch_options(arch: str) -> Mapping[str, str]:
    """The option that loads a network of another maker again: a factory's name holds a colon, a loader's none."""
    return {"arch": arch} if ":" in arch else {"loader": arch}


def recipe_of(
    spec: EngineSpec,
    attention: Attention,
    options: CalibrationOptions | None,
    samples: SampleSet | None,
    arch: str | None = None,
) -> Recipe:
    """The recipe of a bundle that is being made."""
    told = None if samples is None else (samples.source, samples.options, samples.sha256)
    return Recipe(engine=spec, attention=attention, calibration=options, samples=told, arch=arch)


def git_commit() -> str | None:
    """The commit of msan's own source, with ``+changes`` if files differ from it; ``None`` if it is installed."""
    folder = Path(__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    tracked = _git(folder, "ls-files", "--", Path(__file__).name)
    if not commit or not tracked:
        return None
    return f"{commit}+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def _with_calibration(recipe: Recipe, told: Mapping[str, str]) -> Recipe:
    options = CalibrationOptions(
        precision=cast(CalibratedPrecision, told["precision"]),
        budget_db=float(told["budget"].removesuffix("dB")),
        least_psnr_db=float(told["least_psnr"]),
        margin=float(told["margin"]),
        method=cast(RangeMethod, told["method"]),
        correct_bias=told["correct_bias"] == "true",
    )
    sampling = SampleOptions(
        count=int(told["samples_count"]), size_px=int(told["samples_size"]), seed=int(told["samples_seed"])
    )
    samples = (told["samples"], sampling, told["samples_sha256"])
    return replace(recipe, calibration=options, samples=samples)


def _shape(text: str) -> tuple[int, int, int]:
    batch, height, width = map(int, text.split("x"))
    return batch, height, width


def _git(folder: Path, *arguments: str) -> str:
    """What git says; empty if it is not there or fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
