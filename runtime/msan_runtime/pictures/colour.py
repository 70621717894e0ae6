"""Colours of files into those that the network takes: RGB, by rule for each of Pillow's modes."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

from PIL import Image, ImageCms

from msan_runtime.errors import PictureError
from msan_runtime.pictures.notes import note

__all__ = ["ink_conversion", "plain_conversion", "srgb_profile"]

CREATION_DATE = slice(24, 36)
"""Where an ICC profile says when it was made (ICC.1, section 7.2.1)."""

CONVERTIBLE = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})


def plain_conversion(mode: str, *, alpha: bool) -> Callable[[Image.Image], Image.Image]:
    """What makes an image of ``mode`` RGB, or RGBA if ``alpha``.

    Raises:
        PictureError: for a mode of other colours.
    """
    if mode not in CONVERTIBLE:
        raise PictureError(f"has colours of a kind that is not supported ({mode}). Convert it to RGB")
    target = "RGBA" if alpha else "RGB"
    return lambda image: image.convert(target)


def ink_conversion(icc: bytes | None) -> tuple[Callable[[Image.Image], Image.Image], bytes | None]:
    """What makes a CMYK image RGB, and the ICC profile of the result.

    With the file's profile: to sRGB, relative colorimetric with black point compensation. Without
    one, or with one that is no CMYK profile (that is logged): by the plain formula, and no profile.
    """
    if icc is None:
        return plain_conversion("CMYK", alpha=False), None
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(icc)),
            ImageCms.createProfile("sRGB"),
            "CMYK",
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError) as error:
        note("the CMYK profile cannot be used, colours are converted without it: %s", error)
        return plain_conversion("CMYK", alpha=False), None
    return partial(_transformed, transform), srgb_profile()


def srgb_profile() -> bytes:
    """The ICC profile of sRGB, the same bytes always."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[CREATION_DATE] = b"\x07\xd0\0\x01\0\x01\0\0\0\0\0\0"
    return bytes(profile)


def _transformed(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it is None only for a change in place
    return converted
