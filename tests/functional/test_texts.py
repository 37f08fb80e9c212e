# SPDX-License-Identifier: Apache-2.0
"""Similar texts are different in every database, and each is stored unchanged."""

import pytest

from cyborg_lite import model
from tests import support

#: With default settings some database treats two of these as equal, or cannot store them.
ALIKE = [
    'straße',
    'STRASSE',
    'strasse',
    'strasse ',
    ' strasse',
    'strässe',
    'strásse',
    '😀',
    '😁',
    '一',
]
LONG = '😀' * 255


@pytest.fixture
def part(service):
    service.report(support.card())
    [row] = service.rows(model.Deployable)
    return row.id


@pytest.mark.parametrize('text', [LONG, *ALIKE])
def test_an_attribute_comes_back_as_it_was(service, part, text):
    body = {'deployable_id': part, 'key': text, 'value': text}
    made = service.api.post('/v2/attributes', body)
    assert made.status_int == 201
    shown = service.api.get(f'/v2/attributes/{made.json["uuid"]}').json
    assert (shown['key'], shown['value']) == (text, text)
    assert service.api.post('/v2/attributes', body).status_int == 409


def test_keys_that_look_alike_are_others(service, part):
    for text in ALIKE:
        body = {'deployable_id': part, 'key': text, 'value': text}
        assert service.api.post('/v2/attributes', body).status_int == 201, text
    for text in ALIKE:
        answer = service.api._app.get('/v2/attributes', {'key': text})
        assert [row['value'] for row in answer.json['attributes']] == [text]


def test_cards_whose_facts_look_alike_are_others(service):
    """The same cards are found in a second report."""
    cards = [
        support.card(str(number), vendor=text, model=text) for number, text in enumerate(ALIKE)
    ]
    for card, text in zip(cards, ALIKE, strict=True):
        card.address = card.deployables[0].name = text
    service.report(*cards)
    before = [(row.uuid, row.address, row.model) for row in service.rows(model.Device)]
    assert [address for _, address, _ in before] == ALIKE
    service.report(*cards, digest='another')
    assert [(row.uuid, row.address, row.model) for row in service.rows(model.Device)] == before


def test_hosts_that_look_alike_are_others(service):
    """Names of hosts are restricted: see tests/unit/conductor/test_reports.py."""
    names = ['strasse', 'STRASSE', 'Strasse', 'strasse.']
    for text in names:
        service.report(support.card(), host=text)
    assert [row.name for row in service.rows(model.Host)] == names
    assert len(service.rows(model.Device)) == len(names)
    for text in names:
        [row] = service.api._app.get('/v2/devices', {'hostname': text}).json['devices']
        assert row['hostname'] == text
