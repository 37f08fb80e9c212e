# SPDX-License-Identifier: Apache-2.0
"""Remove from a recording what identifies a card, a machine or a user.

The output of tools has serial numbers, UUIDs, and processes of users.  A serial number is replaced
by another of the same shape, and by the same one at each place, so that cards stay distinct and
tables keep their columns.  Processes are removed.
"""

from __future__ import annotations

import collections.abc
import re
import secrets
import typing

#: The names of identifying values in the output of tools.
#: Source: dcmi's npu_info_print.c, nvidia-smi(1), its DTD nvsmi_device_v12.
NAMED = (
    r'(?:serial(?:[ _-]*(?:number|num|no\.?))?|uuid|guid|die[ _-]*id|unique[ _-]*id|host[ _-]*id'
    r'|(?<![a-z])(?:s/?n|pdi))'
)
#: Patterns of such values in the formats of tools.
VALUES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "serial": "..." in JSON
        rf'{NAMED}"[ \t]*:[ \t]*"(?P<value>[^"\n]*)"',
        # <serial>...</serial> in XML
        rf'<[\w.-]*{NAMED}[\w.-]*>(?P<value>[^<\n]*)<',
        # Serial Number : ...
        rf'{NAMED}[ \t]*[:=](?![ \t]*["\[{{])[ \t]*(?P<value>[^|\n]*)',
        # unique_id 5847760019078012339 in files of the kernel
        rf'(?m:^)\w*{NAMED}[ \t]+(?P<value>(?:0x)?[0-9a-f]{{6,64}})[ \t]*(?m:$)',
    )
]
#: A UUID at any place.
UUID = re.compile(r'(?P<value>\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b)', re.IGNORECASE)
#: The headings of a column of such values, and of a column of processes.
SECRET_COLUMN = re.compile(rf'[\w. -]*{NAMED}', re.IGNORECASE)
PROCESS_COLUMN = re.compile(
    r'\s*(?:pid|process(?:es)?:?|process[ _](?:id|name)s?(?: *\[.*)?)\s*', re.IGNORECASE
)
#: The XML tags around lists of processes.
PROCESS_TAG = re.compile(r'<(/?)(?:processes|process_info|accounted_processes)>', re.IGNORECASE)
#: The lists of processes in an answer of NVML; what follows their begin is left out.
PROCESS_LIST = re.compile(r'("pids": \[|"pid_memory": \{)[^]}]*')
#: The heading of an indented section of processes.
PROCESS_SECTION = re.compile(r'(?P<indent>\s*)(?:accounted )?processes\s*(?::.*)?', re.IGNORECASE)
#: A word that may be a serial number, and the length from which it is distinctive.
WORD = re.compile('[0-9A-Za-z]+(?:-[0-9A-Za-z]+)*')
DISTINCT = 6
#: The maximum number of tries to find an unused value: short values have few alternatives.
TRIES = 100

Outputs = dict[tuple[str, ...], str]


def mask(
    outputs: Outputs, files: dict[str, str], names: collections.abc.Collection[str] = ()
) -> tuple[Outputs, dict[str, str], dict[str, str]]:
    """Mask the output of tools and the content of files.

    :param outputs: texts by tool and arguments
    :param files: texts by path; the last part of the path names the content
    :param names: paths without content; each is returned with its replacement
    """
    left = {command: _without_processes(text) for command, text in outputs.items()}
    masked = _Mask()
    printed = {command: masked.named(text) for command, text in left.items()}
    held = {path: masked.file(path.rpartition('/')[2], text) for path, text in files.items()}
    # A serial number may also be at a place without a label, even in a command.
    return (
        {
            tuple(map(masked.known, command)): masked.known(text)
            for command, text in printed.items()
        },
        {masked.known(path): masked.known(text) for path, text in held.items()},
        {name: masked.known(name) for name in names},
    )


class _Mask:
    """The replacement of each value in one recording."""

    def __init__(self) -> None:
        self._placeholders: dict[str, str] = {}
        self._masked: set[str] = set()
        # The values that are also replaced at places without a label.
        self._words: dict[str, str] = {}

    def named(self, text: str) -> str:
        """The text, with the values replaced that are labelled as secret."""
        for pattern in (UUID, *VALUES):
            text = pattern.sub(self._replace, text)
        return '\n'.join(self._columns(text.split('\n')))

    def file(self, name: str, text: str) -> str:
        """The masked text of a file, whose name labels its content."""
        return self.named(f'{name}: {text}').partition(': ')[2]

    def known(self, text: str) -> str:
        """The text, with the words replaced that are secret values elsewhere."""
        text = UUID.sub(self._replace, text)
        return WORD.sub(lambda word: self._words.get(word[0], word[0]), text)

    def _replace(self, match: re.Match[str]) -> str:
        value = match['value']
        if match.re is not UUID and UUID.search(value):
            return match[0]  # it was replaced before
        start, end = (place - match.start() for place in match.span('value'))
        return match[0][:start] + self._placeholder(value) + match[0][end:]

    def _columns(self, lines: list[str]) -> collections.abc.Iterator[str]:
        """The lines, with the cells below the heading of a secret column replaced."""
        secret: dict[int, str] = {}
        width = 0
        for line in lines:
            cells = _cells(line)
            heading = {n for n, cell in enumerate(cells) if SECRET_COLUMN.fullmatch(cell.strip())}
            if heading and len(cells) > 1:
                secret, width = dict.fromkeys(heading, ''), len(cells)
            elif secret and len(cells) == width:
                # The separators of cells are at the odd places.
                line = ''.join(
                    self._placeholder(cell) if number in secret else cell
                    for number, cell in enumerate(cells)
                )
            elif not line.strip():
                secret = {}
            yield line

    def _placeholder(self, text: str) -> str:
        """The replacement of a value: it has the same shape, so its kind and its columns stay."""
        value = text.strip()
        # NA, N/A, [Not Supported] and 0000 mean that there is no value.
        if not re.search('[1-9]', value) or value in self._masked:
            return text
        if value not in self._placeholders:
            other = self._unused(value)
            self._placeholders[value] = other
            self._masked.add(other)
            if len(value) >= DISTINCT:
                self._words[value] = other
        return text.replace(value, self._placeholders[value], 1)

    def _unused(self, value: str) -> str:
        """Another value of this shape, which is unused if possible."""
        for _ in range(TRIES):
            other = _alike(value)
            if other not in self._masked and other not in self._placeholders:
                break
        return other


def _alike(value: str) -> str:
    """Another value of this shape: digits for digits, letters for letters."""
    prefix = '0x' if value.lower().startswith('0x') else ''
    letters = 'abcdef' if re.fullmatch(r'[0-9A-Fa-f\W_]*', value[len(prefix) :]) else 'ghjkmnpqrstv'
    return value[: len(prefix)] + ''.join(_other(c, letters) for c in value[len(prefix) :])


def _other(character: str, letters: str) -> str:
    if character.isdigit():
        return secrets.choice('123456789')
    if not character.isalpha():
        return character
    return secrets.choice(letters.upper() if character.isupper() else letters)


def _cells(line: str) -> list[str]:
    """The cells of a row, with their separators in between."""
    separator = r'(\|)' if '|' in line else '(,)' if ',' in line else r'(\s{2,})'
    return re.split(separator, line)


def _without_processes(text: str) -> str:
    text = PROCESS_LIST.sub(r'\1', _elements_without_processes(text))
    return '\n'.join(_lines_without_processes(text.split('\n')))


def _elements_without_processes(text: str) -> str:
    kept, start, depth = [], 0, 0
    for tag in PROCESS_TAG.finditer(text):
        if not depth:
            kept.append(text[start : tag.start()])
        depth = max(0, depth + (-1 if tag[1] else 1))
        start = tag.end()
    return ''.join(kept) + ('' if depth else text[start:])


def _lines_without_processes(lines: list[str]) -> collections.abc.Iterator[str]:
    inside: collections.abc.Callable[[str], typing.Any] | None = None
    for line in lines:
        if inside and inside(line):
            # The border lines of a table stay.
            if not re.search('[0-9A-Za-z]', line):
                yield line
            continue
        inside = None
        if section := PROCESS_SECTION.fullmatch(line):
            inside = re.compile(rf'{section["indent"]}[ \t]').match
        elif any(map(PROCESS_COLUMN.fullmatch, _cells(line))):
            inside = str.strip
        yield line
