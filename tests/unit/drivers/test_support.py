# SPDX-License-Identifier: Apache-2.0
"""The support matrix is that of the tests."""

from __future__ import annotations

import pytest

from cyborg_lite.driver import pci
from tests.unit.drivers import support


class Acme(pci.PciDriver):
    """Acme cards."""

    name = 'acme'
    models = {('abcd', '0001'): 'Acme One', ('abcd', '0002'): 'Acme Two'}


def test_the_page_is_not_stale():
    made = support.page(support.shipped(), support.collect())
    assert support.PAGE.read_text() == made, 'run python -m tests.unit.drivers.support'


def test_evidence_is_of_drivers_and_models_that_there_are():
    models = {kind.name: {*getattr(kind, 'models', {}).values()} for kind in support.shipped()}
    for each in support.collect():
        assert each.how in support.HOW
        assert {*each.models} <= models[each.driver], each


def test_what_is_lacking_is_of_drivers_that_there_are(monkeypatch):
    assert support.LACKS.keys() <= {kind.name for kind in support.shipped()}
    monkeypatch.setitem(support.LACKS, 'acme', 'No Acme card was used.')
    assert support.page([Acme], set()).endswith('\nNo Acme card was used.\n')


def test_a_driver_is_described_only_as_far_as_no_test_shows_more():
    shown = support.Evidence('acme', 'real capture', 'a server', ('Acme Two',))
    text = support.page([Acme], {shown})
    assert '   * - real capture\n     - a server\n     - Acme Two\n' in text
    assert text.endswith('\n\nNot tested, described only: Acme One.\n')
    text = support.page([Acme], set())
    assert (
        'Not tested with anything of a real card.\n\nNot tested, described only: Acme One, ' in text
    )


def test_a_row_names_the_models_of_the_table():
    shown = support.Evidence('acme', 'real capture', 'a server', ())
    with pytest.raises(ValueError, match='acme: a server: expected models of its table'):
        support.page([Acme], {shown})
    unnamed = type('Unnamed', (Acme,), {'models': {}})
    assert '     - a server\n     - no table of models\n' in support.page([unnamed], {shown})


def test_marks_of_parameters_count():
    @pytest.mark.evidence('acme', 'real capture', 'one')
    @pytest.mark.parametrize('n', [1, pytest.param(2, marks=pytest.mark.evidence('acme'))])
    def test(n):
        pass

    marks = [mark.args for mark in support._marks(test) if mark.name == 'evidence']
    assert marks == [('acme',), ('acme', 'real capture', 'one')]
