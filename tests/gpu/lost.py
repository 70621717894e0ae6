"""The ``msan`` command on a GPU that is lost before one of the pictures, counted from 1: the first argument."""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

from tests.gpu.driver import Driver

from msan_runtime import cli
from msan_runtime.deblur import Deblurrer

NO_FAULT = 77
"""Exit code where the GPU could not be broken: then nothing was tested."""


def main() -> None:
    """Run the command line with the remaining arguments."""
    fatal = int(sys.argv.pop(1))
    deblur, pictures = Deblurrer.deblur, itertools.count(1)

    def on_a_failing_device(deblurrer: Deblurrer, picture: Any) -> Any:
        if next(pictures) == fatal:
            lose_the_device()
        return deblur(deblurrer, picture)

    patched: Any = Deblurrer
    patched.deblur = on_a_failing_device
    cli.main()


def lose_the_device() -> None:
    """Break the GPU for this process, or end it."""
    try:
        status = Driver().lose()
    except Exception as error:
        sys.stderr.write(f"no fault: {error}\n")
        os._exit(NO_FAULT)
    if status == 0:
        sys.stderr.write("no fault: the kernel ran\n")
        os._exit(NO_FAULT)
