# SPDX-License-Identifier: Apache-2.0
"""The faults of tests/mutants are still faults of this code; tox -e mutants makes them."""

import ast
import pathlib

import pytest

import cyborg_lite
from tests import mutants

ROOT = pathlib.Path(cyborg_lite.__file__).parent


@pytest.mark.parametrize('mutant', mutants.load(), ids=lambda mutant: mutant.name)
def test_each_can_be_made(mutant):
    ast.parse(mutant.apply((ROOT / mutant.file).read_text()))


def test_a_mutant_without_its_text_is_an_error():
    [mutant, *_] = mutants.load()
    with pytest.raises(ValueError, match='expected the text once'):
        mutant.apply('')
