# SPDX-License-Identifier: Apache-2.0
"""Ascend cards with and without an npu-smi that can be believed."""

from __future__ import annotations

import os
import string

import hypothesis
from hypothesis import strategies as st
import pytest

from cyborg_lite import driver
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import testing
from cyborg_lite.drivers import huawei_ascend
from tests.unit.drivers import captures


def discover(host: driver.Host) -> list[driver.Device]:
    return testing.discover(huawei_ascend.HuaweiAscend, host)


@pytest.mark.parametrize(
    ('ids', 'model', 'traits'),
    [
        ('19e5:d100', 'Ascend 310', ['CUSTOM_NPU_310']),
        ('19e5:d802', 'Ascend 910B', ['CUSTOM_NPU_910B']),
    ],
)
def test_a_card_is_complete(tmp_path, ids, model, traits):
    """P1: upstream reports a 310 without class or traits, and no 910B at all."""
    [card] = discover(captures.host(tmp_path, [captures.function('0000:01:00.0', ids)]))
    vendor, product = ids.split(':')
    assert card.facts() == {
        'type': 'AICHIP',
        'vendor': vendor,
        'model': model,
        'address': '0000:01:00.0',
        'numa_node': 0,
        'board': {'product_id': product, 'class': '120000'},
        'vendor_board': {},
        'deployables': [
            {
                'name': '0000:01:00.0',
                'driver_name': 'huawei_ascend',
                'attributes': [
                    {'key': 'rc', 'value': 'CUSTOM_NPU'},
                    *({'key': f'trait{n}', 'value': t} for n, t in enumerate(traits)),
                ],
                'attach_handles': [
                    {
                        'attach_type': 'PCI',
                        'attach_info': {
                            'domain': '0000',
                            'bus': '01',
                            'device': '00',
                            'function': '0',
                        },
                    }
                ],
            }
        ],
    }


@pytest.mark.parametrize(
    ('ids', 'model'),
    [
        ('19e5:d105', 'Ascend 310B'),
        ('19e5:d500', 'Ascend 310P'),
        ('19e5:d501', 'Ascend 310P'),
        ('19e5:d801', 'Ascend 910'),
        ('19e5:d803', 'Ascend 910_93'),
        ('19e5:d804', 'Ascend 910B'),
        ('19e5:d806', 'Ascend 950'),
        ('20c6:d500', 'Ascend 310P'),
        ('203f:d802', 'Ascend 910B'),
        ('20e9:d802', 'Ascend 910B'),
        ('ffff:d500', 'Ascend 310P'),
    ],
)
def test_models(tmp_path, ids, model):
    host = captures.host(tmp_path, [captures.function('0000:01:00.0', ids)])
    assert [d.model for d in discover(host)] == [model]


@pytest.mark.parametrize(
    ('ids', 'pci_class'),
    [
        ('19e5:d802', '020000'),
        ('19e5:1711', '030000'),
        ('19e5:a222', '020000'),
        ('20c6:d801', '120000'),
        ('ffff:d802', '120000'),
        ('10de:d802', '120000'),
        ('19e5:d805', '120000'),
    ],
)
def test_no_ascend(tmp_path, ids, pci_class):
    function = captures.function('0000:01:00.0', ids, pci_class)
    assert discover(captures.host(tmp_path, [function])) == []


def test_virtual_functions_are_given_out_in_place_of_their_card(tmp_path):
    virtual = {'id': '19e5:d805', 'total': '16', 'enabled': '4', 'offset': '1'}
    function = captures.function('0000:01:00.0', '19e5:d802', virtual=virtual)
    [card] = discover(captures.host(tmp_path, [function]))
    handles = card.deployables[0].attach_handles
    assert [h.attach_info['function'] for h in handles] == ['1', '2', '3', '4']


def test_the_shipped_server(tmp_path):
    cards = discover(hosts.find('atlas-800t-a2', tmp_path))
    assert {c.model for c in cards} == {'Ascend 910B3'}
    assert [c.numa_node for c in cards] == [0, 0, 2, 2, 4, 4, 6, 6]
    assert sorted(c.vendor_board['npu_id'] for c in cards) == list(range(8))
    assert {c.vendor_board['board_id'] for c in cards} == {'0x32'}
    for card in cards:
        group = [card.vendor_board['npu_id'], *card.vendor_board['hccs_peers']]
        assert sorted(group) == list(range(8))


def test_the_shipped_duo_gives_each_card_out_once(tmp_path):
    cards = discover(hosts.find('atlas-300i-duo', tmp_path))
    assert [len(c.vendor_board['chips']) for c in cards] == [2] * 4
    assert [len(c.deployables[0].attach_handles) for c in cards] == [1] * 4


class Local(driver.Host):
    """A host whose files are a copy and whose tools are run."""

    def __init__(self, copy: driver.Host) -> None:
        super().__init__(copy.name, copy.root, recorded=False)

    def run(self, tool: str, *args: str, timeout: float = 1.0) -> str | None:
        return super().run(tool, *args, timeout=timeout)


@pytest.fixture
def npu_smi(tmp_path, monkeypatch):
    """A host of one 910B, with an npu-smi of this script."""

    def run(script: str) -> list[driver.Device]:
        path = tmp_path / 'bin/npu-smi'
        path.parent.mkdir()
        path.write_text(f'#!/bin/sh\n{script}\n')
        path.chmod(0o755)
        monkeypatch.setenv('PATH', f'{path.parent}:{os.environ["PATH"]}')
        functions = [captures.function('0000:01:00.0', '19e5:d802')]
        return discover(Local(captures.host(tmp_path, functions)))

    return run


TABLE = """
| NPU   Name   | Health | Power(W) Temp(C) Hugepages-Usage(page) |
| Chip         | Bus-Id | AICore(%) Memory-Usage(MB) HBM-Usage(MB) |
| 3     910B4-1 | OK    | NA 40 0/0 |
| 0            | 0000:01:00.0 | 0 0 / 0 12/ 32768 |
"""


@pytest.mark.parametrize(
    'script',
    ['exit 1', 'sleep 60', 'head -c 300000 /dev/urandom', 'yes', 'echo "|"; kill -9 $$', 'true'],
)
def test_a_tool_that_fails_loses_no_card(npu_smi, script):
    [card] = npu_smi(script)
    assert card.model == 'Ascend 910B'
    assert card.deployables[0].traits == ['CUSTOM_NPU_910B']
    assert len(card.deployables[0].attach_handles) == 1


def test_a_tool_that_fails_later_keeps_what_it_told_before(npu_smi):
    [card] = npu_smi(f'test $# = 1 || exit 1\ncat <<EOF{TABLE}EOF')
    assert card.model == 'Ascend 910B4-1'
    assert card.vendor_board['chips'] == [{'chip_id': 0, 'memory_mb': 32768}]
    assert card.deployables[0].traits == ['CUSTOM_NPU_910B', 'CUSTOM_NPU_910B4_1']


def test_a_tool_is_not_run_where_there_is_no_card(tmp_path):
    class Untouched(driver.Host):
        def run(self, tool, *args, timeout=10.0):
            raise AssertionError(tool)

    copy = captures.host(tmp_path, [captures.function('0000:01:00.0', '10de:2330', '030200')])
    assert discover(Untouched('x', copy.root)) == []


@pytest.mark.parametrize(
    ('name', 'model'),
    [
        ('910B3', 'Ascend 910B3'),
        ('Ascend910B3', 'Ascend 910B3'),
        ('910B2C', 'Ascend 910B2C'),
        ('310P3', 'Ascend 910B'),
        ('910B', 'Ascend 910B'),
        ('910B3\u202e', 'Ascend 910B'),
        ('910B3' + 'x' * 300, 'Ascend 910B'),
        ('', 'Ascend 910B'),
    ],
)
def test_a_name_counts_if_it_is_of_the_family(tmp_path, name, model):
    function = captures.function('0000:01:00.0', '19e5:d802')
    table = TABLE.replace('910B4-1', name)
    [card] = discover(captures.host(tmp_path, [function], {'npu-smi': {'info': table}}))
    assert card.model == model


TABLES = (
    st.text(st.sampled_from('| \n\t:.-/+=' + string.hexdigits + 'NPU Bus-Id OK\u0663')) | st.text()
)
ROWS = st.lists(
    st.sampled_from(TABLE.splitlines()) | st.text('| 0123456789abc:./-', max_size=60), max_size=12
).map('\n'.join)


@hypothesis.given(TABLES | ROWS)
@hypothesis.settings(deadline=None, max_examples=300)
def test_any_text_is_a_table_or_nothing(text):
    for chip in huawei_ascend.parse_info(text):
        assert chip['npu_id'] >= 0
        assert all(isinstance(value, int) for value in chip['chip'].values())
    for row in huawei_ascend.parse_mapping('NPU ID  Chip ID  Chip Name\n' + text):
        assert {'npu_id', 'chip_id', 'chip_name'} <= row.keys()
    huawei_ascend.parse_board(text)
    for peers in huawei_ascend.parse_topology(text).values():
        assert all(isinstance(peer, int) for peer in peers)


@hypothesis.given(TABLES | ROWS)
@hypothesis.settings(
    deadline=None,
    max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_any_text_of_the_tool_leaves_the_card(tmp_path_factory, text):
    function = captures.function('0000:01:00.0', '19e5:d802')
    said = dict.fromkeys(
        ('info', 'info -m', 'info -t topo', 'info -t board -i 0', 'info -t board -i 3'), text
    )
    clean = {k: v.encode('utf-8', 'replace').decode() for k, v in said.items()}
    host = captures.host(tmp_path_factory.mktemp('any'), [function], {'npu-smi': clean})
    assert len(discover(host)) == 1


def test_a_table_that_names_a_thousand_cards_costs_few_runs(tmp_path):
    rows = [f'| {n} 910B3 | OK | |\n| 0 | 0000:{n % 256:02x}:00.0 | 1/1 |' for n in range(1000)]
    function = captures.function('0000:01:00.0', '19e5:d802')
    host = captures.host(tmp_path, [function], {'npu-smi': {'info': '\n'.join(rows)}})
    runs = []
    run = host.run
    host.run = lambda *args, **kwargs: runs.append(args) or run(*args, **kwargs)
    huawei_ascend.HuaweiAscend(host, None).discover()
    assert len(runs) <= huawei_ascend.NPUS + 3
