"""The one exception root of msan. Each message says what is wrong, the value seen, and the next step."""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BundleError",
    "CheckFailedError",
    "ContractError",
    "EngineUnfitError",
    "MissingExtraError",
    "MsanError",
    "OutOfMemoryError",
    "PictureError",
    "SelfTestError",
    "UnknownFormatError",
]


class MsanError(Exception):
    """Something that a user can put right. The command line prints it without a traceback.

    Attributes:
        exit_code: what the ``msan`` command exits with: 2 for bad input, 1 for a failed check.
    """

    exit_code = 2


class ContractError(MsanError):
    """An array that the image contract does not allow (dtype, shape, size)."""


class PictureError(MsanError):
    """A picture file that cannot be read or written."""


class UnknownFormatError(PictureError):
    """A file in none of the formats that are read."""


class BundleError(MsanError):
    """A bundle that cannot be trusted or used: schema, hash, missing file, path out of the folder."""


class BackendError(MsanError):
    """A backend that was asked for and cannot run here."""


class OutOfMemoryError(BackendError):
    """The device's memory did not suffice for a run. Smaller tiles may do."""


class EngineUnfitError(BackendError):
    """An engine that does not run on this machine, where one built from its graph may."""


class SelfTestError(BackendError):
    """A backend that does not give the picture that the bundle says it must give."""


class MissingExtraError(MsanError):
    """A package is missing that an extra installs."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. Install it with: pip install 'msan[{extra}]'")


class CheckFailedError(MsanError):
    """A check with a verdict (parity, precision) failed."""

    exit_code = 1
