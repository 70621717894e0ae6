"""What the result of a file is called."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from pathlib import PurePath

from msan_runtime.errors import PictureError

__all__ = ["FIELDS", "FORMAT_SUFFIXES", "Naming"]

FIELDS = ("stem", "suffix", "model")
FORMAT_SUFFIXES = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tif": ".tif"}

FORBIDDEN = frozenset('/\\:*?"<>|')
"""What separates paths, or may not be in a name on one of the systems that folders travel between."""


@dataclass(frozen=True, kw_only=True)
class Naming:
    """A template for names and a format for pictures.

    Attributes:
        template: with the fields ``{stem}`` (the source's name without its ending), ``{suffix}`` (the
            result's ending, with the dot) and ``{model}`` (the bundle's name); ends in ``{suffix}``.
        picture_format: ``png``, ``jpg``, ``webp`` or ``tif``; each picture keeps its own if left out.
        model: for ``{model}``.

    Raises:
        PictureError: if the template is not such a one, or the format unknown.
    """

    template: str = "{stem}{suffix}"
    picture_format: str | None = None
    model: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.picture_format is not None and self.picture_format not in FORMAT_SUFFIXES:
            raise PictureError(f"no format {self.picture_format!r}. There are: {', '.join(FORMAT_SUFFIXES)}")
        fields = _fields(self.template)
        unknown = [name for name in fields if name not in FIELDS]
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise PictureError(f"--name {self.template!r} has a field {{{unknown[0]}}}. There are: {known}")
        if "stem" not in fields or not self.template.endswith("{suffix}"):
            raise PictureError(f"--name {self.template!r} must hold {{stem}} and end in {{suffix}}")
        self._check_letters()

    def result_of(self, name: str, *, is_video: bool = False) -> str:
        """What the result of the file called ``name`` is called."""
        path = PurePath(name)
        suffix = path.suffix if is_video or self.picture_format is None else FORMAT_SUFFIXES[self.picture_format]
        return self.template.format(stem=path.stem, suffix=suffix, model=self.model)

    def _check_letters(self) -> None:
        for what, text in (
            (f"--name {self.template!r}", self.template),
            (f"the model's name {self.model!r}", self.model),
        ):
            used = "model" in _fields(self.template) or text is self.template
            wrong = sorted({letter for letter in text if letter in FORBIDDEN or not letter.isprintable()})
            if used and wrong:
                raise PictureError(
                    f"{what} has {wrong[0]!r} in it, which a file's name cannot have. Choose another --name"
                )


def _fields(template: str) -> list[str]:
    """The names of the fields.

    Raises:
        PictureError: if the template cannot be read, or says how to format a field.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise PictureError(f"--name {template!r} cannot be read: {error}. Write {{{{ and }}}} for braces") from error
    if any(form or conversion for _, _, form, conversion in parts):
        raise PictureError(f"--name {template!r}: fields are plain, like {{stem}}, without ':' or '!'")
    return [name for _, name, _, _ in parts if name is not None]
