"""Files of a folder and what is below it, each once, also where links lead in a circle."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["FileId", "Found", "file_id", "find_files"]

FileId = tuple[int, int]
"""What a file is, whatever it is called: its device and its number there."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found.

    Attributes:
        files: paths relative to the folder, sorted.
        problems: what could not be searched or is no file, in words.
    """

    files: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def file_id(path: Path | str) -> FileId | None:
    """The id of the file or folder at ``path``, through links; ``None`` if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - called for each of many files, which mostly are strings
    except OSError:
        return None
    return status.st_dev, status.st_ino


def find_files(folder: Path, suffixes: Collection[str], *, without: Collection[FileId] = ()) -> Found:
    """Search ``folder`` for files whose names end in one of ``suffixes`` (in lower case).

    A link to a file is a file of its own. A link to a folder is followed unless it leads to a folder
    that is searched anyway: no folder is searched twice.

    Args:
        folder: where to search; links to it are followed.
        suffixes: like ``.png``.
        without: folders and files to leave out.
    """
    search = _Search(folder, suffixes, without)
    search.below("")
    while search.links:
        search.below(search.links.popleft())
    search.found.files.sort()
    return search.found


class _Search:
    """One search: real folders at once, linked ones put off until it is known which folders are real."""

    def __init__(self, folder: Path, suffixes: Collection[str], without: Collection[FileId]) -> None:
        self.found = Found()
        self.links: deque[str] = deque()
        self._folder = folder
        self._suffixes = suffixes
        self._without = frozenset(without)
        self._seen: set[FileId] = set()

    def below(self, relative: str) -> None:
        """Search the folder at ``relative`` and all real folders below it."""
        folders = [relative]
        while folders:
            relative = folders.pop()
            identity = file_id(self._folder / relative)
            if identity in self._seen or (relative and identity in self._without):
                continue
            if identity is not None:
                self._seen.add(identity)
            folders += self._real_folders_in(relative)

    def _real_folders_in(self, relative: str) -> list[str]:
        """Note the files and links of one folder; gives the real folders in it."""
        folders: list[str] = []
        try:
            with os.scandir(self._folder / relative) as entries:
                for entry in entries:
                    path = os.path.join(relative, entry.name)  # noqa: PTH118 - many, and kept as strings
                    try:
                        if not entry.is_dir():
                            self._note_file(entry, path)
                        elif entry.is_symlink():
                            self.links.append(path)
                        else:
                            folders.append(path)
                    except OSError as error:
                        self._note_lost_link(entry, path, error)
        except OSError as error:
            self.found.problems.append(f"cannot search {self._folder / relative}: {error.strerror}")
        return folders

    def _note_file(self, entry: os.DirEntry[str], path: str) -> None:
        if not self._is_wanted(entry):
            return
        if not entry.is_file():
            kind = "a link to nothing" if entry.is_symlink() else "not a file"
            self.found.problems.append(f"{self._folder / path} is {kind}")
        elif not self._without or file_id(entry.path) not in self._without:
            self.found.files.append(path)

    def _note_lost_link(self, entry: os.DirEntry[str], path: str, error: OSError) -> None:
        """Of a link to itself, through a file, or to where nobody may look: what is lost by it, if anything."""
        if self._is_wanted(entry) or isinstance(error, PermissionError):
            self.found.problems.append(f"cannot follow {self._folder / path}: {error.strerror}")

    def _is_wanted(self, entry: os.DirEntry[str]) -> bool:
        return os.path.splitext(entry.name)[1].lower() in self._suffixes  # noqa: PTH122
