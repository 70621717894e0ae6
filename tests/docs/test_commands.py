"""Every command in the documents exists and takes the options and values that it is given there."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.docs.blocks import DOCUMENTS, ROOT, blocks_of, inline_commands, msan_lines

from command_pages import all_commands, root_command

MSAN: Any = root_command()
COMMANDS = {words[1:]: command for words, command in all_commands(MSAN)}
BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document) if block.language == "sh"]


def parse(words: list[str]) -> None:
    """Read the words as the command would, and run nothing."""
    command, rest, context = MSAN, words[1:], None
    name = "msan"
    while hasattr(command, "commands"):
        context = command.make_context(name, rest, parent=context)
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_commands_of_a_block_are_taken_as_they_stand(block: Any) -> None:
    for words in msan_lines(block):
        parse(words)


def test_there_are_commands() -> None:
    used = {words[1] for block in BLOCKS for words in msan_lines(block)}
    assert used == {path[0] for path in COMMANDS}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_running_text_exist_with_their_options(document: str) -> None:
    for words in inline_commands(document):
        if words[1] == "COMMAND" or words[1].startswith("-"):
            continue
        matching = [command for path, command in COMMANDS.items() if path[0] == words[1]]
        assert matching, words
        known = {name for command in matching for option in command.params for name in option.opts}
        used = {word for word in words[2:] if re.match(r"--?[a-z]", word)} - {"--help"}
        assert used <= known, words


def test_wrong_commands_are_noticed() -> None:
    for wrong in (["msan", "deblurr"], ["msan", "deblur", "a", "-o", "b", "--compares"], ["msan", "export", "a"]):
        with pytest.raises(Exception, match=r"No such|Missing"):
            parse(wrong)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    texts = ((ROOT / document).read_text(encoding="utf-8") for document in DOCUMENTS)
    targets = {target for text in texts for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.M)}
    assert {"demo", "test", "docs"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)
