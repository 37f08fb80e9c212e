# SPDX-License-Identifier: Apache-2.0
"""Faults that tests must find."""

from __future__ import annotations

import dataclasses
import pathlib

import yaml


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A fault: text in a file of cyborg_lite, and its replacement."""

    name: str
    file: str
    search: str
    replace: str
    #: arguments of pytest
    tests: list[str]

    def apply(self, text: str) -> str:
        """The file with the fault.

        :raises ValueError: when the text is not there once: the code has changed.
        """
        if text.count(self.search) != 1:
            raise ValueError(f'{self.name}: expected the text once in {self.file}: {self.search!r}')
        return text.replace(self.search, self.replace)


def load() -> list[Mutant]:
    file = pathlib.Path(__file__).with_name('mutants.yaml')
    return [Mutant(**each) for each in yaml.safe_load(file.read_text())]
