# SPDX-License-Identifier: Apache-2.0
"""Cards that the operator configures."""

from __future__ import annotations

import json

import hypothesis
from hypothesis import strategies as st
from oslo_config import cfg
import pytest

from cyborg_lite import driver
from cyborg_lite.driver import sysfs
from cyborg_lite.driver import testing
from cyborg_lite.drivers import pci
from tests.unit.drivers import captures


def discover(host: driver.Host, *specs: dict) -> list[driver.Device]:
    conf = cfg.ConfigOpts()
    conf.register_opts([cfg.MultiStrOpt('device_spec', default=[])], 'pci')
    conf.set_override('device_spec', [json.dumps(spec) for spec in specs], 'pci')
    return testing.discover(pci.PciDevices, host, conf)


@pytest.fixture
def host(tmp_path):
    virtual = {'id': '8086:37c9', 'total': '4', 'enabled': '4', 'offset': '8'}
    return captures.host(
        tmp_path,
        [
            captures.function('0000:3b:00.0', '8086:37c8', '0b4000', virtual=virtual),
            captures.function('0000:3b:00.1', '8086:0b25', '088000', node='1'),
            captures.function('0001:3c:00.0', '1bcf:001c', '0b4000'),
        ],
    )


def test_nothing_is_found_without_a_spec(host):
    assert discover(host) == []


def test_a_card(host):
    [card] = discover(
        host,
        {
            'vendor_id': '8086',
            'product_id': '0B25',
            'resource_class': 'CUSTOM_DSA',
            'traits': ['CUSTOM_DSA_V1'],
            'type': 'DSA',
        },
    )
    assert (card.type, card.vendor, card.model) == ('DSA', '8086', 'PCI 8086:0b25')
    assert (card.address, card.numa_node) == ('0000:3b:00.1', 1)
    [deployable] = card.deployables
    assert deployable.resource_class == 'CUSTOM_DSA'
    assert deployable.traits == ['CUSTOM_DSA_V1']
    assert [h.attach_info['function'] for h in deployable.attach_handles] == ['1']


def test_absent_keys_have_defaults(host):
    [card] = discover(host, {'address': '0001:3c:00.0'})
    assert (card.type, card.deployables[0].resource_class) == ('PCI', 'CUSTOM_PCI')
    assert card.deployables[0].traits == []


@pytest.mark.parametrize(
    ('address', 'found'),
    [
        ('*:3b:00.*', ['0000:3b:00.0', '0000:3b:00.1']),
        ('0000:3B:00.1', ['0000:3b:00.1']),
        ('3c:00.0', ['0001:3c:00.0']),
        ('0:3b:0.1', ['0000:3b:00.1']),
        ('1:3c:?0.0', ['0001:3c:00.0']),
        ('00.1', ['0000:3b:00.1']),
        (':00.', ['0000:3b:00.0', '0000:3b:00.1', '0001:3c:00.0']),
        ('0001:*:*.*', ['0001:3c:00.0']),
        ('*', ['0000:3b:00.0', '0000:3b:00.1', '0001:3c:00.0']),
        ('ff:00.0', []),
    ],
)
def test_addresses(host, address, found):
    assert [d.address for d in discover(host, {'address': address})] == found


def test_class(host):
    assert [d.address for d in discover(host, {'class_id': '0b40'})] == [
        '0000:3b:00.0',
        '0001:3c:00.0',
    ]


@pytest.mark.parametrize(
    ('spec', 'handles'),
    [
        ({'product_id': '37c8'}, ['01.0', '01.1', '01.2', '01.3']),
        ({'product_id': '37c9'}, ['01.0', '01.1', '01.2', '01.3']),
        ({'product_id': '37c9', 'address': '*:01.[02]'.replace('[02]', '?')}, None),
        ({'address': '0000:3b:01.2'}, ['01.2']),
    ],
)
def test_virtual_functions_are_under_their_card(host, spec, handles):
    [card] = discover(host, spec)
    assert card.address == '0000:3b:00.0'
    infos = [h.attach_info for h in card.deployables[0].attach_handles]
    expected = handles or ['01.0', '01.1', '01.2', '01.3']
    assert [f'{i["device"]}.{i["function"]}' for i in infos] == expected


def test_the_first_spec_that_matches_counts(host):
    devices = discover(
        host,
        {'product_id': '0b25', 'resource_class': 'CUSTOM_DSA'},
        {'vendor_id': '8086', 'resource_class': 'CUSTOM_OTHER'},
    )
    classes = {d.address: d.deployables[0].resource_class for d in devices}
    assert classes == {'0000:3b:00.1': 'CUSTOM_DSA', '0000:3b:00.0': 'CUSTOM_OTHER'}


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('PGPU', 'PGPU'),
        ('pgpu', 'PGPU'),
        ('NPU', 'CUSTOM_NPU'),
        ('dsa', 'CUSTOM_DSA'),
        ('CUSTOM_DSA', 'CUSTOM_DSA'),
        ('custom_dsa', 'CUSTOM_DSA'),
        ('my dsa-v1.0', 'CUSTOM_MY_DSA_V1_0'),
        ('x' * 248, 'CUSTOM_' + 'X' * 248),
    ],
)
def test_resource_classes_as_nova_has_them(host, name, expected):
    [card] = discover(host, {'product_id': '0b25', 'resource_class': name})
    assert card.deployables[0].resource_class == expected


def test_a_model(host):
    [card] = discover(host, {'product_id': '0b25', 'model': 'Data Streaming Accelerator'})
    assert card.model == 'Data Streaming Accelerator'


BAD = ['{', '{"address": "*", "vendor": "x"}', '{"class_id": "x"}', '{}', '7']


@pytest.mark.parametrize('bad', BAD)
def test_an_invalid_spec_does_not_affect_others(host, bad):
    conf = cfg.ConfigOpts()
    conf.register_opts([cfg.MultiStrOpt('device_spec', default=[])], 'pci')
    specs = ['{"product_id": "0b25"}', bad, '{"vendor_id": "1bcf"}']
    conf.set_override('device_spec', specs, 'pci')
    subject = pci.PciDevices(host, conf)
    for _ in range(2):
        cards, [note] = subject.look()
        assert [card.address for card in cards] == ['0000:3b:00.1', '0001:3c:00.0']
        assert note.startswith('[pci] device_spec[1]')
        # Its matches are unknown: no card counts as missing.
        assert not subject.complete
    conf.set_override('device_spec', specs[:1], 'pci')
    assert subject.look()[1] == []
    assert subject.complete


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{', 'not JSON'),
        ('[' * 100000, 'not JSON'),
        ('[]', 'expected a JSON object'),
        ('{}', 'expected vendor_id, product_id, class_id or address'),
        ('{"type": "GPU"}', 'expected vendor_id, product_id, class_id or address'),
        ('{"vendor_id": 8086}', r'\.vendor_id: expected four hexadecimal digits, or \*, not 8086'),
        ('{"vendor_id": "8086", "vendor": "x"}', r'\.vendor: not known; expected vendor_id, '),
        ('{"vendor_id": "10de", "product_id": "1"}', r'\.product_id: expected four'),
        ('{"class_id": "x"}', r'\.class_id: expected two to six'),
        ('{"address": "1:2:3:4.0"}', r'\.address: expected \[\[domain:\]bus:\]'),
        ('{"address": "[a-z]*"}', r'\.address: expected'),
        ('{"address": "*", "resource_class": "-"}', r'\.resource_class: expected a resource class'),
        ('{"address": "*", "resource_class": 7}', r'\.resource_class: expected a resource class'),
        (
            '{"address": "*", "resource_class": "' + 'x' * 249 + '"}',
            r'\.resource_class: expected at most 255',
        ),
        ('{"address": "*", "model": ""}', r'\.model: expected up to 255'),
        ('{"address": "*", "model": "' + 'x' * 256 + '"}', r'\.model: expected up to 255'),
        ('{"address": "*", "model": "a\\u0000b"}', r'\.model: expected printable'),
        ('{"address": "*", "traits": "CUSTOM_A"}', r'\.traits: expected a list of traits'),
        ('{"address": "*", "traits": ["a"]}', r'\.traits: expected a list of traits'),
        ('{"address": "*", "type": ""}', r'\.type: expected a type'),
    ],
)
def test_an_invalid_spec_is_refused(text, message):
    with pytest.raises(ValueError, match=rf'^\[pci\] device_spec\[2\].*{message}'):
        pci.parse(text, '[pci] device_spec[2]')


@hypothesis.given(
    st.text() | st.dictionaries(st.sampled_from([*pci.KEYS]), st.text()).map(json.dumps)
)
@hypothesis.settings(deadline=None)
def test_any_text_is_a_spec_or_a_clear_error(text):
    try:
        pci.parse(text, 'here')
    except ValueError as error:
        assert str(error).startswith('here')


@hypothesis.given(st.from_regex(sysfs.BDF, fullmatch=True))
@hypothesis.settings(deadline=None)
def test_a_whole_address_matches_itself(bdf):
    class Function:
        ids, pci_class = ('8086', '37c8'), '0b4000'

    Function.bdf = bdf
    assert pci.parse(json.dumps({'address': bdf}), '').matches(Function)
