"""The command of the calibration room: ``msan calibrate``."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperGroup

from msan_runtime.errors import MsanError
from msan_runtime.targets import FP8_CARDS, capabilities_named

if TYPE_CHECKING:
    from msan_calib.calibrate import CalibratedGraph
    from msan_calib.network import PictureNetwork
    from msan_calib.samples import SampleSet

__all__ = ["decibels", "register"]

screen = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

ModelArgument = Annotated[
    Path, typer.Argument(help="FP32 ONNX file from one picture to one picture.", metavar="MODEL.onnx")
]
SamplesOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of pictures like those to come; with input/ and target/ of pairs (default: shipped pairs)."
    ),
]
CountOption = Annotated[int, typer.Option(help="Crops to calibrate on; half as many more are held out.")]
SizeOption = Annotated[int, typer.Option(help="Side of a crop, px, a multiple of 8.")]
SeedOption = Annotated[int, typer.Option(help="Of the choice of crops.")]
PeakOption = Annotated[float | None, typer.Option(help="White in float pictures: 1 (default) or 255.")]


class _Calibrate(TyperGroup):
    """``msan calibrate MODEL.onnx`` means ``msan calibrate types MODEL.onnx``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {*self.list_commands(ctx), "--help"}
        return super().parse_args(ctx, args if not args or args[0] in known else ["types", *args])

    def get_help(self, ctx: Any) -> str:
        """The group's help, and that of ``types``, whose name may be left out."""
        types_command = self.get_command(ctx, "types")
        if types_command is None:
            return super().get_help(ctx)
        inner = types_command.context_class(types_command, info_name="types", parent=ctx)
        return f"{super().get_help(ctx)}\n\n{types_command.get_help(inner)}"


def register(app: typer.Typer) -> None:
    """Add this room's commands to the root app."""
    group = typer.Typer(
        cls=_Calibrate,
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Decide the types of a graph by measurement: FP16, INT8 or FP8. "
        "`msan calibrate MODEL.onnx ...` is short for `msan calibrate types MODEL.onnx ...`.",
    )
    group.command("types")(types)
    group.command("ranges")(ranges)
    app.add_typer(group, name="calibrate")


def types(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The ONNX file to write.")],
    precision: Annotated[Literal["fp16", "int8", "fp8"], typer.Option(help="The lowest type to use.")] = "fp16",
    budget: Annotated[str, typer.Option(help="Loss of PSNR that INT8 or FP8 may cost, for example 0.10dB.")] = "0.10dB",
    least_psnr: Annotated[float, typer.Option(help="Of FP16 pictures against FP32, dB.")] = 55.0,
    margin: Annotated[float, typer.Option(help="FP16 tensors stay so many times below 65,504.")] = 4.0,
    method: Annotated[
        Literal["minmax", "percentile", "entropy", "mse"], typer.Option(help="Where INT8 activations are clipped.")
    ] = "mse",
    gpu: Annotated[
        str | None, typer.Option(help="GPUs to be built for (names: msan build --gpu list); not all have FP8.")
    ] = None,
    samples: SamplesOption = None,
    count: CountOption = 16,
    size: SizeOption = 256,
    seed: SeedOption = 0,
    peak: PeakOption = None,
) -> None:
    """Write MODEL.onnx in FP16, or with what of it can be INT8 or FP8, as the pictures allow.

    Beside the graph: NAME.calibration.json with every figure, and for INT8 and FP8 NAME.frontier.png.
    """
    from msan_calib.calibrate import CalibrationOptions, calibrate
    from msan_calib.files import write_calibrated

    options = CalibrationOptions(
        precision=precision,
        budget_db=decibels(budget),
        least_psnr_db=least_psnr,
        margin=margin,
        method=method,
    )
    if precision == "fp8" and gpu is not None:
        _refuse_fp8(gpu)
    if output.resolve() == model.resolve():
        raise MsanError(f"{output} is the model itself and would be overwritten. Choose another -o")
    network, chosen = _opened(model, samples, count, size, seed, peak)
    with errors.status("calibrating") as status:
        result = calibrate(network, chosen, options, say=status.update)
    with _writing(output):
        written = write_calibrated(result, network, output, source=model.name)
    _print_result(result)
    for path in written:
        _say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def ranges(
    model: ModelArgument,
    json: Annotated[Path | None, typer.Option(help="Write every tensor's figures here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw all tensors between the ends of FP16 here (PNG).")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Of each table.")] = 15,
    samples: SamplesOption = None,
    count: CountOption = 16,
    size: SizeOption = 256,
    seed: SeedOption = 0,
    peak: PeakOption = None,
) -> None:
    """Show what every tensor reaches on the samples, and what of it FP16 cannot hold."""
    from msan_calib import report
    from msan_calib.ranges import measure_ranges
    from msan_runtime.atomic import write_text
    from msan_runtime.strictjson import strict_json

    network, chosen = _opened(model, samples, count, size, seed, peak)
    with errors.status("measuring") as status:
        found = measure_ranges(
            network, chosen.calibration, on_sample=lambda done, of: status.update(f"sample {done} of {of}")
        )
    screen.print(report.ranges_table(found, rows))
    screen.print(report.weights_table(found, rows))
    over = sum(entry.overflow_share > 0 for entry in found.tensors)
    _say(f"{len(found.tensors)} tensors over {len(chosen.calibration)} samples; {over} hold values that overflow FP16")
    if json is not None:
        with _writing(json):
            write_text(json, strict_json({"samples": chosen.to_dict(), **report.ranges_body(found)}))
    if plot is not None:
        with _writing(plot):
            report.plot_ranges(found, plot)


def _opened(
    model: Path, samples: Path | None, count: int, size: int, seed: int, peak: float | None
) -> tuple[PictureNetwork, SampleSet]:
    from msan_calib.network import load_network
    from msan_calib.samples import SampleOptions, choose_samples

    if peak is not None and peak not in (1, 255):
        raise MsanError(f"white in float pictures is 1 or 255, not {peak:g}")
    options = SampleOptions(count=count, size_px=size, seed=seed)
    return load_network(model, peak=peak), choose_samples(samples, options)


def decibels(text: str) -> float:
    """The number of ``0.10dB`` or ``0.10``.

    Raises:
        MsanError: if it is none.
    """
    try:
        return float(text.lower().removesuffix("db").strip())
    except ValueError as error:
        raise MsanError(f"a budget is a number of dB, for example 0.10dB, not {text!r}") from error


def _refuse_fp8(gpu: str) -> None:
    """FP8 needs compute capability 8.9 or later."""
    old = [capability.sm for capability in capabilities_named(gpu) if not capability.has_fp8]
    if old:
        raise MsanError(f"{', '.join(old)} has no FP8. {FP8_CARDS}. Use --precision int8")


def _print_result(result: CalibratedGraph) -> None:
    from msan_calib import report

    half = result.half
    more = [island for island in half.islands if island.kind != "form"]
    if more:
        screen.print(report.islands_table(half.islands))
    _say(
        f"FP16: {half.quality.worst_db:.1f} dB against FP32 at worst, {len(half.islands)} nodes in FP32 "
        f"({len(more)} of them for overflow or accuracy), found with {half.evaluations} evaluations"
    )
    if result.choice is not None:
        point = result.choice.point
        truth = "against sharp pictures" if result.choice.truth_known else "taking FP32 pictures to have 32 dB"
        _say(
            f"{result.options.precision.upper()}: {len(result.quantized)} of {len(result.convolutions)} convolutions, "
            f"{point.flops_share:.0%} of their operations, lose {point.loss_db:.3f} dB on "
            f"{len(result.samples.held_out)} held-out crops ({truth}; budget {result.options.budget_db:g} dB)"
        )
        _say(f"kept FP16: {report.kept_words(result)}")


def _say(line: str) -> None:
    """Print a line as it is, however wide the terminal."""
    screen.print(line, soft_wrap=True, markup=False)


@contextmanager
def _writing(path: Path) -> Generator[None]:
    """Turn a failure to write at ``path`` into a message."""
    try:
        yield
    except OSError as error:
        raise MsanError(f"cannot write to {path}: {error.strerror or error}. Choose another place") from error
