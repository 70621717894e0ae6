"""The README's commands: each one exists, with each of its options; the quick ones are run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MSAN = Path(sys.executable).with_name("msan")


def commands(*documents: str) -> list[str]:
    """Every ``msan`` line in the shell blocks of the documents, without comments."""
    found: list[str] = []
    for document in documents:
        for block in re.findall(r"```sh\n(.*?)```", (ROOT / document).read_text(), flags=re.S):
            lines = (line.partition("  #")[0].strip() for line in block.splitlines())
            found += [line for line in lines if line.startswith("msan ")]
    return found


COMMANDS = commands("README.md")


@pytest.mark.parametrize("command", sorted({shlex.split(line)[1] for line in COMMANDS}))
def test_each_command_and_option_in_the_readme_exists(command: str) -> None:
    done = subprocess.run([MSAN, command, "--help"], capture_output=True, text=True, check=True)
    for line in COMMANDS:
        words = shlex.split(line)
        if words[1] == command:
            options = {word for word in words[2:] if re.fullmatch(r"--?[a-z][a-z-]*", word)}
            assert not {option for option in options if option not in done.stdout}, line


def test_the_readme_makes_only_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), flags=re.M))
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)


def test_the_readme_deblurs_a_picture(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    line = next(line for line in COMMANDS if line.startswith("msan deblur examples/"))
    done = subprocess.run([MSAN, *shlex.split(line)[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*.compare.png"))
