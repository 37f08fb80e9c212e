# SPDX-License-Identifier: Apache-2.0
"""Block devices of SPDK, whose application may say anything."""

from __future__ import annotations

import json

import hypothesis
from hypothesis import strategies as st
import pytest

from cyborg_lite import contract
from cyborg_lite import driver
from cyborg_lite.driver import jsonrpc
from cyborg_lite.driver import testing
from cyborg_lite.drivers import spdk
from tests.unit.drivers import captures

UUID = '2d1c0b9a-4f3e-4d6c-8b7a-0123456789ab'
BDEV = {'name': 'Nvme0n1', 'product_name': 'NVMe disk', 'uuid': UUID, 'block_size': 512}


def discover(tmp_path, told) -> list[driver.Device]:
    host = captures.host(tmp_path, [], {'spdk': {'bdev_get_bdevs': json.dumps(told)}})
    return testing.discover(spdk.Spdk, host)


def test_a_block_device(tmp_path):
    [card] = discover(tmp_path, [BDEV | {'num_blocks': 2048, 'numa_id': 1, 'claimed': False}])
    assert (card.type, card.model, card.address) == ('SSD', 'SPDK NVMe disk', 'spdk:Nvme0n1')
    assert (card.serial, card.numa_node, card.unusable) == (UUID, 1, None)
    assert card.vendor_board == {'name': 'Nvme0n1', 'blocks': 2048, 'block_size': 512}
    [part] = card.deployables
    assert (part.resource_class, part.traits) == ('CUSTOM_SPDK_BDEV', ['CUSTOM_SPDK_NVME_DISK'])
    [handle] = part.attach_handles
    assert handle.attach_info == {'bdev': 'Nvme0n1', 'socket': '/var/tmp/spdk.sock'}


def test_a_uuid_of_several_identifies_none(tmp_path):
    cards = discover(tmp_path, [BDEV, BDEV | {'name': 'Nvme1n1'}])
    assert [card.serial for card in cards] == [None, None]


@pytest.mark.parametrize('told', [{}, 7, 'x'])
def test_an_answer_that_is_no_list_is_told(tmp_path, told):
    host = captures.host(tmp_path, [], {'spdk': {'bdev_get_bdevs': json.dumps(told)}})
    subject = spdk.Spdk(host, None)
    assert subject.look() == ([], ['bdev_get_bdevs is not answered by a list'])
    assert not subject.complete


def test_a_claimed_one_is_not_given_out(tmp_path):
    [card] = discover(tmp_path, [BDEV | {'claimed': True}])
    assert card.unusable == 'SPDK uses it itself: it is claimed'


@pytest.mark.parametrize('name', [None, '', 7.5, ' x', 'a\nb', 'x' * 101, '\u96c7'])
def test_a_name_that_cannot_be_shown_costs_its_device(tmp_path, name):
    assert [c.address for c in discover(tmp_path, [{'name': name}, BDEV])][-1] == 'spdk:Nvme0n1'


def test_the_application_of_this_machine_is_asked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(jsonrpc, 'call', lambda *args: asked.append(args) or [BDEV])
    host = driver.Host('x', tmp_path, recorded=False)
    [card] = testing.discover(spdk.Spdk, host)
    assert card.serial == UUID
    assert {*asked} == {
        ('/var/tmp/spdk.sock', 'bdev_get_bdevs'), ('/var/tmp/spdk.sock', 'spdk_get_version')
    }  # fmt: skip
    assert json.loads(host.outputs['spdk', 'bdev_get_bdevs']) == [BDEV]


@hypothesis.given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.just('Nvme0n1'),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*BDEV, 'numa_id']), inner),
    )
)
def test_any_answer_makes_sound_devices(told):
    class Host:
        recorded = False

        def ask(self, *_):
            return told

        def run(self, *_):
            return None

    found, complaints = contract.check(spdk.Spdk(Host(), None).discover())
    assert complaints == []
    assert len(found) <= (len(told) if isinstance(told, list) else 0)


@pytest.mark.parametrize(
    ('version', 'traits'),
    [
        ('SPDK v24.09', ['24', '24_09']),
        ('SPDK v24.01.1-pre git sha1 1c92f8d', ['24', '24_01_1_PRE']),
        ('19.04-pre', ['19', '19_04_PRE']),
        ('SPDK v24.09\n', None),
        ('SPDK', None),
        (24, None),
        (None, None),
    ],
)
def test_the_version_of_the_application(tmp_path, version, traits):
    tools = {'bdev_get_bdevs': [BDEV], 'spdk_get_version': {'version': version}}
    tools = {method: json.dumps(told) for method, told in tools.items()}
    [card] = testing.discover(spdk.Spdk, captures.host(tmp_path, [], {'spdk': tools}))
    assert card.vendor_board.get('runtime_version') == (version if traits else None)
    assert card.deployables[0].traits == [
        'CUSTOM_SPDK_NVME_DISK', *(f'CUSTOM_SPDK_RUNTIME_{each}' for each in traits or ())
    ]  # fmt: skip


@pytest.mark.parametrize('told', ['7', '[]', 'null', 'rubbish'])
def test_a_version_that_is_none_costs_no_device(tmp_path, told):
    tools = {'bdev_get_bdevs': json.dumps([BDEV]), 'spdk_get_version': told}
    [card] = testing.discover(spdk.Spdk, captures.host(tmp_path, [], {'spdk': tools}))
    assert 'runtime_version' not in card.vendor_board


def test_an_application_that_hides_its_version_is_named(tmp_path):
    tools = {'bdev_get_bdevs': json.dumps([BDEV]), 'spdk_get_version': ''}
    host = testing.Host(captures.host(tmp_path, [], {'spdk': tools}))
    host.tools['spdk spdk_get_version'] = testing.Fault.FAILS
    subject = spdk.Spdk(host, None)
    devices, notes = subject.look()
    assert (len(devices), len(notes), subject.complete) == (1, 1, True)


@pytest.mark.evidence(
    'spdk', 'vendor sample', 'bdev_get_bdevs and spdk_get_version in the documentation'
)
def test_the_example_of_the_documentation(tmp_path):
    methods = ('bdev_get_bdevs', 'spdk_get_version')
    told = {m: json.dumps(json.loads(captures.text(f'spdk/{m}.json'))['result']) for m in methods}
    [card] = testing.discover(spdk.Spdk, captures.host(tmp_path, [], {'spdk': told}))
    assert (card.model, card.serial) == ('SPDK Malloc disk', None)
    assert card.vendor_board == {
        'name': 'Malloc0', 'blocks': 20480, 'block_size': 512, 'runtime_version': '19.04-pre'
    }  # fmt: skip
