# SPDX-License-Identifier: Apache-2.0
"""The versions of the software of a card: facts as their makers write them, and traits.

``580.159.04`` as the driver of ``acme_npu`` is the fact ``driver_version``, and makes the traits
CUSTOM_ACME_NPU_DRIVER_580 and CUSTOM_ACME_NPU_DRIVER_580_159_04.
"""

from __future__ import annotations

import collections.abc
import re

from cyborg_lite import driver

#: The kinds of software that have versions.
KINDS = ('driver', 'firmware', 'runtime')
#: The maximum length of a fact in one line, in characters.
FACT = 128


def line(text: str | None) -> str | None:
    """The text as one printable line; None if it is none, or too long."""
    words = ' '.join((text or '').split())
    return words if 0 < len(words) <= FACT else None


def sound(told: collections.abc.Mapping[str, str | None]) -> dict[str, str]:
    """The usable versions by their kind, each as one line."""
    lines = {kind: line(told.get(kind)) for kind in KINDS}
    return {kind: text for kind, text in lines.items() if text}


def facts(told: collections.abc.Mapping[str, str]) -> dict[str, str]:
    """The facts of a board: ``driver_version`` and so on."""
    return {f'{kind}_version': text for kind, text in told.items()}


def traits(name: str, told: collections.abc.Mapping[str, str]) -> collections.abc.Iterator[str]:
    """The traits of the versions, with the name of the driver of this package that found them.

    A version that makes no valid trait has none.
    """
    for kind, text in told.items():
        number = re.match('[0-9]{1,6}(?![0-9])', text)
        # For a version of one number both are the same.
        for words in dict.fromkeys([*([number[0]] if number else []), text]):
            if made := driver.trait(name, kind, words):
                yield made
