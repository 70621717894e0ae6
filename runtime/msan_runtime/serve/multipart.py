"""The picture of a ``multipart/form-data`` body, parsed as it comes and never written to disk."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from email.message import Message
from typing import TYPE_CHECKING

from msan_runtime.serve.problems import ProblemError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartParser

__all__ = ["boundary_of", "picture_of_form"]

FILE_NAME = re.compile(rb";\s*filename\*?\s*=", re.IGNORECASE)
FIELD_NAME = re.compile(rb';\s*name\s*=\s*"?([^";]*)', re.IGNORECASE)


def boundary_of(content_type: str | None) -> bytes | None:
    """The boundary of a form; ``None`` if the body is none.

    Raises:
        ProblemError: for a form without a boundary.
    """
    message = Message()
    message["content-type"] = content_type or ""
    if message.get_content_type() != "multipart/form-data":
        return None
    try:
        boundary = message.get_param("boundary")
    except (TypeError, ValueError):  # the email package trips over some parameters in parts (RFC 2231)
        boundary = None
    if not isinstance(boundary, str) or not boundary.isascii() or not 0 < len(boundary) <= 70:
        raise ProblemError("malformed", "the form has no boundary in its Content-Type: let the client library set it")
    return boundary.encode()


async def picture_of_form(parts: AsyncIterator[bytes], boundary: bytes) -> bytes:
    """The content of the form's one file.

    Raises:
        ProblemError: if the form is damaged, has no file or several, or another field.
    """
    from python_multipart.exceptions import FormParserError

    fields = _Fields()
    parser = fields.parser(boundary)
    async for part in parts:
        try:
            parser.write(part)
        except FormParserError as error:
            raise ProblemError("malformed", f"the form is damaged: {str(error)[:200]}") from error
    if not fields.ended:
        raise ProblemError("malformed", "the form is cut short: its last boundary is missing")
    if fields.files == 0:
        raise ProblemError("bad-option", "the form must hold one file, not 0. Send one picture a request")
    return bytes(fields.content)


class _Fields:
    """Takes what the parser finds; holds the content of the one file."""

    def __init__(self) -> None:
        self.files = 0
        self.ended = False
        self.content = bytearray()
        self._disposition = b""
        self._name = bytearray()
        self._value = bytearray()

    def parser(self, boundary: bytes) -> MultipartParser:
        """A parser that tells this object what it finds."""
        from python_multipart.multipart import MultipartParser

        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._take,
                "on_end": self._end,
            },
        )

    def _begin(self) -> None:
        self._disposition = b""

    def _end_header(self) -> None:
        if bytes(self._name).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        if FILE_NAME.search(self._disposition) is None:
            found = FIELD_NAME.search(self._disposition)
            name = "" if found is None else found[1][:40].decode("utf-8", errors="replace")
            raise ProblemError(
                "bad-option",
                f"the form has a field {name!r} that is no file: options go in the query, like ?quality=70",
            )
        if self.files == 1:
            raise ProblemError("bad-option", "the form must hold one file, not 2 or more. Send one picture a request")
        self.files = 1

    def _take(self, data: bytes, start: int, end: int) -> None:
        self.content.extend(memoryview(data)[start:end])

    def _end(self) -> None:
        self.ended = True
