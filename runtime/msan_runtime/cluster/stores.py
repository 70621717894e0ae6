"""Object stores and other file systems by address, like ``s3://bucket/folder``, through fsspec."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import secrets
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from msan_runtime.atomic import ABANDONED_SECONDS, TEMPORARY_NAME, write_bytes
from msan_runtime.errors import MissingExtraError, PictureError

__all__ = ["Store", "StoredFile", "is_address", "open_store"]

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

OBJECT_STORES = frozenset({"s3", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory"})
"""Where an object appears when it is whole: there is nothing to rename."""

TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
"""What fsspec's file systems call the time of the last change."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of a store, by its path there."""

    path: str
    size_bytes: int
    mtime_ns: int


def is_address(text: str) -> bool:
    """Whether ``text`` is an address, like ``s3://bucket/folder``, and no local path."""
    return ADDRESS.match(text) is not None


class Store:
    """One file system of fsspec. Any thread may use it."""

    def __init__(self, protocol: str, system: Any) -> None:
        self.protocol = protocol
        self._system = system

    def path(self, address: str) -> str:
        """The path of an address in this store, without a ``/`` at its end."""
        if self.protocol == "s3":
            return address.partition("://")[2].rstrip("/")
        return str(self._system._strip_protocol(address)).rstrip("/")

    def address(self, path: str) -> str:
        """The address of a path."""
        return path if is_address(path) else f"{self.protocol}://{path}"  # those of HTTP keep their protocol

    def kind(self, path: str) -> str | None:
        """``file`` or ``directory``; ``None`` if there is nothing.

        Raises:
            PictureError: if the store does not answer.
        """
        with self._explained("read", path):
            try:
                return str(self._system.info(path)["type"])
            except FileNotFoundError:
                return None

    def file(self, path: str) -> StoredFile:
        """The file at ``path``.

        Raises:
            PictureError: if there is none, or the store does not answer.
        """
        with self._explained("read", path):
            return _stored(path, self._system.info(path))

    def files(self, folder: str) -> list[StoredFile]:
        """Every file below ``folder``, by path; none if there is no such folder.

        Raises:
            PictureError: if the store does not answer.
        """
        found: list[StoredFile] = []
        with self._explained("search", folder), contextlib.suppress(FileNotFoundError):
            for _, _, files in self._system.walk(folder, detail=True, on_error="raise"):
                found += [_stored(str(info["name"]), info) for info in files.values()]
        return sorted(found, key=lambda file: file.path)

    def read(self, path: str) -> bytes:
        """What is in a file.

        Raises:
            PictureError: if it cannot be read.
        """
        with self._explained("read", path):
            return bytes(self._system.cat_file(path))

    def write(self, path: str, data: bytes) -> None:
        """Put a file there: a reader sees the old one or the whole new one.

        Raises:
            PictureError: if it cannot be written.
        """
        with self._explained("write", path):
            if self.protocol == "file":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                write_bytes(Path(path), data)
            elif self.protocol in OBJECT_STORES:
                self._system.pipe_file(path, data)
            else:
                self._write_and_rename(path, data)

    def remove_abandoned(self, files: Iterable[StoredFile]) -> None:
        """Remove those of ``files`` that are temporary ones of :meth:`write` and too old to be still in the writing."""
        oldest_ns = time.time_ns() - round(ABANDONED_SECONDS * 1e9)
        for file in files:
            if TEMPORARY_NAME.fullmatch(PurePosixPath(file.path).name) and file.mtime_ns < oldest_ns:
                with contextlib.suppress(Exception):  # somebody else's, or gone meanwhile
                    self._system.rm_file(file.path)

    def _write_and_rename(self, path: str, data: bytes) -> None:
        folder, _, name = path.rpartition("/")
        temporary = f"{folder}/.msan-{name[:40]}.{secrets.token_hex(8)}.tmp"
        self._system.makedirs(folder, exist_ok=True)
        try:
            self._system.pipe_file(temporary, data)
            self._system.mv(temporary, path)
        except BaseException:
            with contextlib.suppress(Exception):
                self._system.rm_file(temporary)
            raise

    @contextmanager
    def _explained(self, verb: str, path: str) -> Generator[None]:
        try:
            yield
        except Exception as error:  # each file system raises its library's own
            reason = "it is not there" if isinstance(error, FileNotFoundError) else _first_line(error)
            raise PictureError(f"cannot {verb} {self.address(path)}: {reason}") from error


@cache
def open_store(protocol: str) -> Store:
    """The store of addresses that begin with ``protocol``; keys and endpoints come from the environment.

    Raises:
        MissingExtraError: without fsspec, or for ``s3`` without PyArrow.
        PictureError: if fsspec does not know the protocol or lacks its package.
    """
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise MissingExtraError("fsspec", "ray") from error
    if protocol == "s3":
        return Store(protocol, _s3())
    try:
        return Store(protocol, fsspec.filesystem(protocol))
    except (ImportError, ValueError) as error:
        raise PictureError(f"cannot open {protocol}:// addresses: {_first_line(error)}") from error


def _s3() -> Any:
    """S3 through PyArrow, which Ray Data brings anyway: no package more."""
    try:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import S3FileSystem
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyarrow", "ray") from error
    # Keys and region are read by PyArrow itself; these two are not.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return ArrowFSWrapper(S3FileSystem(endpoint_override=endpoint))


def _stored(path: str, info: Mapping[str, Any]) -> StoredFile:
    changed = next((info[name] for name in TIMES if info.get(name) is not None), 0)
    if isinstance(changed, str):
        changed = datetime.datetime.fromisoformat(changed)
    seconds = changed.timestamp() if isinstance(changed, datetime.datetime) else float(changed)
    return StoredFile(path=path, size_bytes=int(info["size"] or 0), mtime_ns=round(seconds * 1e9))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
