# SPDX-License-Identifier: Apache-2.0
"""The literal blocks of pages of the documentation, and their commands."""

from __future__ import annotations

import pathlib
import re
import shlex
import textwrap
import typing

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / 'README.rst'
_UNDERLINE = re.compile(r'([=~^-])\1{2,}')
#: The first group is as wide as the indentation around the block.
_BEGINNING = re.compile(r'( *(?:#\. |\* )?)(?:\.\. code-block:: *(\w+)|(?!\.\. ).*::)')
#: The characters between two commands.
_BETWEEN = '\n;|&'


class Block(typing.NamedTuple):
    """A literal block of a page."""

    #: the title above it
    section: str
    #: the language of ``.. code-block::``; empty after ``::``
    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a shell, in order."""
        lexer = shlex.shlex(self.text.replace('\\\n', ' '), posix=True, punctuation_chars=_BETWEEN)
        lexer.whitespace, lexer.whitespace_split = ' \t', True
        found: list[list[str]] = [[]]
        for word in lexer:
            if set(word) <= set(_BETWEEN):
                found.append([])
            else:
                found[-1].append(word)
        return [command for command in found if command]


def blocks(page: pathlib.Path) -> list[Block]:
    """The literal blocks of a page, in order."""
    lines = page.read_text().splitlines()
    found, section, end = [], '', 0
    for number, line in enumerate(lines):
        if number < end:
            continue
        if _UNDERLINE.fullmatch(line) and number and lines[number - 1].strip():
            section = lines[number - 1]
        if beginning := _BEGINNING.fullmatch(line):
            end = _end(lines, number + 1, len(beginning[1]))
            text = textwrap.dedent('\n'.join(lines[number + 1 : end])).strip('\n') + '\n'
            found.append(Block(section, beginning[2] or '', text))
    return found


def _end(lines: list[str], start: int, width: int) -> int:
    """The end of an indented block."""
    for number in range(start, len(lines)):
        line = lines[number]
        if line.strip() and len(line) - len(line.lstrip()) <= width:
            return number
    return len(lines)
