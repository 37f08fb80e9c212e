# SPDX-License-Identifier: Apache-2.0
"""Ascend cards with and without a working npu-smi."""

from __future__ import annotations

import json
import os
import re
import shutil
import string

import hypothesis
from hypothesis import strategies as st
from oslo_config import cfg
import pytest

from cyborg_lite import delivery
from cyborg_lite import driver
from cyborg_lite import model
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import testing
from cyborg_lite.drivers import huawei_ascend
from cyborg_lite.drivers.tools import npu_smi as printed
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
        'serial': None,
        'unusable': None,
        'health': 'unknown',
        'health_reason': None,
        'rogue': None,
        'idle_since': None,
        'used': None,
        'board': {'product_id': product, 'class': '120000'},
        'vendor_board': {},
        'topology': None,
        'deployables': [
            {
                'name': '0000:01:00.0',
                'label': None,
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
                        'form': None,
                        'iommu_group': None,
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
        others = {each.address for each in cards} - {card.address}
        assert card.topology == {'links': dict.fromkeys(others, 1)}


def test_the_shipped_duo_gives_each_card_out_once(tmp_path):
    cards = discover(hosts.find('atlas-300i-duo', tmp_path))
    assert [len(c.vendor_board['chips']) for c in cards] == [2] * 4
    assert [len(c.deployables[0].attach_handles) for c in cards] == [1] * 4


TABLE = """
| NPU   Name   | Health | Power(W) Temp(C) Hugepages-Usage(page) |
| Chip         | Bus-Id | AICore(%) Memory-Usage(MB) HBM-Usage(MB) |
| 3     910B4-1 | OK    | NA 40 0/0 |
| 0            | 0000:01:00.0 | 0 0 / 0 12/ 32768 |
"""


@pytest.mark.parametrize('fault', [*testing.Fault, '|'], ids=str)
def test_a_failed_tool_loses_names_and_no_card(tmp_path, fault):
    host = testing.Host(captures.host(tmp_path, [captures.function('0000:01:00.0', '19e5:d802')]))
    host.tools['npu-smi'] = fault
    [card] = discover(host)
    assert card.model == 'Ascend 910B'
    assert card.deployables[0].traits == ['CUSTOM_NPU_910B']
    assert len(card.deployables[0].attach_handles) == 1


def test_a_tool_that_fails_later_keeps_known_facts(tmp_path):
    host = testing.Host(captures.host(tmp_path, [captures.function('0000:01:00.0', '19e5:d802')]))
    host.tools |= {'npu-smi': testing.Fault.FAILS, 'npu-smi info': TABLE}
    [card] = discover(host)
    assert card.model == 'Ascend 910B4-1'
    assert card.vendor_board['chips'] == [{'chip_id': 0, 'memory_mb': 32768}]
    assert card.deployables[0].traits == ['CUSTOM_NPU_910B', 'CUSTOM_NPU_910B4_1']


def test_a_tool_is_not_run_where_there_is_no_card(tmp_path):
    card = captures.function('0000:01:00.0', '10de:2330', '030200')
    host = testing.Host(captures.host(tmp_path, [card]))
    assert discover(host) == []
    assert host.runs == []


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


def laid_out(tmp_path, data):
    return testing.lay_out_at(data, tmp_path, tmp_path)


#: An Atlas 200I A2, whose processor is the NPU: npu-smi of a real board.
PROCESSOR = """\
+--------------------------------------------------------------------------------------------------------+
| npu-smi 23.0.rc3                                 Version: 23.0.rc3                                     |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 0       310B1                 | OK              | 8.9          54                15    / 15            |
| 0       0                     | NA              | 0            4974 / 11577                            |
+===============================+=================+======================================================+
"""  # noqa: E501


RELEASED = ['CUSTOM_HUAWEI_ASCEND_DRIVER_23', 'CUSTOM_HUAWEI_ASCEND_DRIVER_23_0_RC3']


@pytest.mark.evidence(
    'huawei_ascend', 'excerpt', 'a 310B1 that is the processor of its board', 'Ascend 310B'
)
def test_an_npu_that_is_the_processor_of_its_board(tmp_path):
    ssd = {'id': '144d:a80a', 'class': '010802', 'at': {'-1': ['0000:01:00.0']}}
    data = {'functions': [ssd], 'dev': ['davinci0', 'davinci_manager', 'svm0']}
    [npu] = discover(laid_out(tmp_path, data | {'tools': {'npu-smi': {'info': PROCESSOR}}}))
    assert (npu.type, npu.model, npu.address) == ('AICHIP', 'Ascend 310B1', 'davinci0')
    assert (npu.health, npu.utilization, npu.unusable) == ('ok', 0, None)
    chip = {'chip_id': 0, 'logic_id': 0, 'phy_id': 0, 'memory_mb': 11577}
    assert npu.vendor_board == {
        'npu_id': 0,
        'chip_name': '310B1',
        'chips': [chip],
        'driver_version': '23.0.rc3',
    }
    [part] = npu.deployables
    assert (part.resource_class, part.traits) == (
        'CUSTOM_NPU',
        [*RELEASED, 'CUSTOM_NPU_310B', 'CUSTOM_NPU_310B1'],
    )
    [handle] = part.attach_handles
    assert (handle.attach_type, handle.form) == ('NODE', 'processor')
    accelerator = {
        'driver': part.driver_name,
        'form': handle.form,
        'ids': model.device.ids_of_part(npu.vendor_board, handle.attach_info),
    }
    own, shared, used, _ = delivery.nodes(accelerator)
    assert (own[:2], used) == (['/dev/davinci0', '/dev/svm0'], ['/dev/davinci0'])
    assert '/dev/davinci_manager' in shared


TOOLKIT = 'package_name=Ascend-cann-toolkit\nversion={}\ninnerversion=V100R001C23SPC002B210\n'
ARM = 'usr/local/Ascend/{}/aarch64-linux/ascend_toolkit_install.info'
INTEL = 'usr/local/Ascend/ascend-toolkit/latest/x86_64-linux/ascend_toolkit_install.info'


@pytest.mark.parametrize(
    ('files', 'version', 'trait'),
    [
        ({ARM.format('cann'): TOOLKIT.format('8.5.0')}, '8.5.0', '8_5_0'),
        ({ARM.format('ascend-toolkit/latest'): TOOLKIT.format('8.3.RC2')}, '8.3.RC2', '8_3_RC2'),
        ({INTEL: TOOLKIT.format('8.0.T6'), ARM.format('cann'): TOOLKIT.format('9.0.0')},
         '9.0.0', '9_0_0'),
        ({INTEL: 'version=\n', 'usr/local/Ascend/nnae/latest/ascend_nnae_install.info':
          'version=6.3.0'}, '6.3.0', '6_3_0'),
        ({INTEL: 'version=a b'}, None, None),
        ({INTEL: 'innerversion=8.0'}, None, None),
        ({}, None, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize('board', ['card', 'processor'])
def test_the_runtime_is_cann(tmp_path, files, version, trait, board):
    data = {
        'card': {'functions': [captures.function('0000:01:00.0', '19e5:d802')]},
        'processor': {'dev': ['davinci0'], 'tools': {'npu-smi': {'info': PROCESSOR}}},
    }
    host = laid_out(tmp_path, data[board])
    for name, text in files.items():
        (host.root / name).parent.mkdir(parents=True, exist_ok=True)
        (host.root / name).write_text(text)
    [npu] = discover(host)
    assert npu.vendor_board.get('runtime_version') == version
    runtime = [name for name in npu.deployables[0].traits if 'RUNTIME' in name]
    made = {f'CUSTOM_HUAWEI_ASCEND_RUNTIME_{each}' for each in (trait, version[0])} if trait else ()
    assert runtime == sorted(made)


def test_npus_of_a_container_that_hides_the_pci_bus(tmp_path):
    """It has two of the cards of its host, and npu-smi lists these two."""
    second = TABLE.replace('| 3 ', '| 5 ').replace('| OK ', '| Alarm ').replace(':01:', ':02:')
    host = laid_out(tmp_path, {'dev': ['davinci4', 'davinci5', 'davinci_manager'], 'tools': {}})
    host.tools['npu-smi'] = TABLE + second
    found = [(npu.address, npu.model, npu.health, npu.health_reason) for npu in discover(host)]
    assert found == [
        ('davinci4', 'Ascend 910B4-1', 'ok', None),
        ('davinci5', 'Ascend 910B4-1', 'critical', 'ascend_alarm'),
    ]
    # A tool that lists another number of NPUs does not tell which is which.
    host.tools['npu-smi'] = TABLE
    assert [(npu.model, npu.health) for npu in discover(host)] == [('Ascend NPU', 'unknown')] * 2


@pytest.mark.parametrize('pci_class', ['120000', ''])
def test_nodes_are_no_npus_where_a_function_may_be_their_card(tmp_path, pci_class):
    """A card whose ids cannot be read, or any other accelerator: each would be given out twice."""
    function = {'id': '19e5:ffff', 'class': '120000', 'at': {'-1': ['0000:01:00.0']}}
    host = laid_out(tmp_path, {'functions': [function], 'dev': ['davinci0']})
    [card] = host.tree.functions()
    (card.path / 'class').write_text(pci_class)
    assert discover(host) == []


def test_vnpus_of_a_host_without_pci_functions_are_no_npus(tmp_path):
    host = laid_out(tmp_path, {'dev': ['davinci100', 'vdavinci100', 'davinci_manager']})
    assert discover(host) == []


TABLES = (
    st.text(st.sampled_from('| \n\t:.-/+=' + string.hexdigits + 'NPU Bus-Id OK\u0663')) | st.text()
)
ROWS = st.lists(
    st.sampled_from(TABLE.splitlines()) | st.text('| 0123456789abc:./-', max_size=60), max_size=12
).map('\n'.join)


@hypothesis.given(TABLES | ROWS)
def test_any_text_is_a_table_or_nothing(text):
    for chip in printed.parse_info(text):
        assert chip['npu_id'] >= 0
        assert all(isinstance(value, int) for value in chip['chip'].values())
    for row in printed.parse_mapping('NPU ID  Chip ID  Chip Name\n' + text):
        assert {'npu_id', 'chip_id', 'chip_name'} <= row.keys()
    printed.parse_board(text)
    assert all(code.isalnum() for code in printed.parse_errors(f'Error Code : {text}'))
    assert (printed.parse_release(f'| npu-smi 1 Version: {text}') or 'x').isascii()
    for peers in printed.parse_topology(text).values():
        assert all(isinstance(peer, int) for peer in peers)


@pytest.fixture(scope='module')
def lonely(tmp_path_factory):
    function = captures.function('0000:01:00.0', '19e5:d802')
    return testing.Host(captures.host(tmp_path_factory.mktemp('any'), [function]))


@hypothesis.given(TABLES | ROWS)
def test_any_text_of_the_tool_leaves_the_card(lonely, text):
    lonely.tools['npu-smi'] = text
    assert len(discover(lonely)) == 1


def test_a_table_that_names_a_thousand_cards_costs_few_runs(tmp_path):
    rows = [f'| {n} 910B3 | OK | |\n| 0 | 0000:{n % 256:02x}:00.0 | 1/1 |' for n in range(1000)]
    function = captures.function('0000:01:00.0', '19e5:d802')
    host = captures.host(tmp_path, [function], {'npu-smi': {'info': '\n'.join(rows)}})
    host = testing.Host(host)
    huawei_ascend.HuaweiAscend(host, None).discover()
    assert len(host.runs) <= huawei_ascend.NPUS + 3


class Asked(testing.Host):
    """A host with npu-smi that records its queries."""

    def answer(self, answers: dict[str, str | testing.Fault | driver.ToolError]) -> None:
        """Change the answers of these queries only."""
        self.tools = {f'npu-smi {question}': each for question, each in answers.items()}

    def since(self) -> list[str]:
        """The queries since the last call of this."""
        runs, self.runs = self.runs, []
        return [run.removeprefix('npu-smi ') for run in runs]


@pytest.fixture
def atlas(tmp_path):
    """The shipped server of eight 910B3."""
    return Asked(hosts.find('atlas-800t-a2', tmp_path))


def subject_of(host: driver.Host) -> huawei_ascend.HuaweiAscend:
    return huawei_ascend.HuaweiAscend(host, None)


def facts(subject: huawei_ascend.HuaweiAscend) -> list[dict]:
    return told(subject.discover())


def told(cards: list[driver.Device]) -> list[dict]:
    """The facts of the cards, without their health, which is new in each scan."""
    return [card.facts() | {'health': None, 'health_reason': None} for card in cards]


BOARDS = [f'info -t board -i {n}' for n in range(8)]
DIES = [f'{board} -c 0' for board in BOARDS]
#: The traits of the driver's version in the heading of the table.
RELEASE = ['CUSTOM_HUAWEI_ASCEND_DRIVER_24', 'CUSTOM_HUAWEI_ASCEND_DRIVER_24_1_RC2']


def test_constant_facts_are_read_once(atlas):
    subject = subject_of(atlas)
    first = facts(subject)
    assert atlas.since() == ['info', 'info -m', *BOARDS, *DIES, 'info -t topo']
    for _ in range(5):
        assert facts(subject) == first
        assert atlas.since() == ['info']


FAILURES = [
    driver.ToolError('npu-smi: exit status 1'),
    driver.ToolError('npu-smi: no answer within 10 s'),
    '',
    'rubbish',
    'ERROR: the card is busy',
]


@pytest.mark.parametrize('failure', FAILURES, ids=str)
def test_a_failed_query_does_not_affect_others(atlas, failure):
    atlas.answer({BOARDS[3]: failure})
    subject = subject_of(atlas)
    cards, notes = subject.look()
    lacking = [c.vendor_board['npu_id'] for c in cards if 'board_id' not in c.vendor_board]
    assert lacking == [3]
    for card in cards:
        assert card.model == 'Ascend 910B3'
        assert card.vendor_board['hccs_peers']
        assert card.vendor_board['chips'][0]['logic_id'] == card.vendor_board['npu_id']
    assert len(notes) == 1
    assert notes[0] == str(failure) or BOARDS[3] in notes[0]
    # Only the failed query is repeated.
    atlas.since()
    atlas.answer({})
    cards, notes = subject.look()
    assert atlas.since() == ['info', BOARDS[3], DIES[3]]
    assert all(c.vendor_board['board_id'] == '0x32' for c in cards)
    assert notes == []


@pytest.mark.parametrize('failure', [*FAILURES, testing.Fault.MISSING], ids=str)
@pytest.mark.parametrize('question', ['info', 'info -m', 'info -t topo', BOARDS[0]])
def test_known_facts_stay_when_a_query_fails(atlas, question, failure):
    subject = subject_of(atlas)
    before = facts(subject)
    atlas.answer({question: failure})
    cards, notes = subject.look()
    assert told(cards) == before
    assert len(notes) == (question == 'info')


def test_a_removed_tool_loses_no_facts(atlas):
    subject = subject_of(atlas)
    before = facts(subject)
    shutil.rmtree(atlas.root / 'tools')
    cards, notes = subject.look()
    assert told(cards) == before
    assert cards[0].model == 'Ascend 910B3'
    assert cards[0].deployables[0].traits == [*RELEASE, 'CUSTOM_NPU_910B', 'CUSTOM_NPU_910B3']
    assert notes == ['npu-smi is not there any more']


def test_a_host_without_the_tool_is_no_fault(atlas):
    shutil.rmtree(atlas.root / 'tools')
    cards, notes = subject_of(atlas).look()
    assert {card.model for card in cards} == {'Ascend 910B'}
    assert notes == []


def test_a_tool_that_comes_later_is_asked(tmp_path):
    host = Asked(hosts.find('atlas-800t-a2', tmp_path))
    tools = (host.root / 'tools').rename(host.root / 'later')
    subject = subject_of(host)
    assert {card.model for card in subject.discover()} == {'Ascend 910B'}
    tools.rename(host.root / 'tools')
    assert facts(subject) == facts(subject_of(host))


def test_an_absent_row_loses_no_facts(atlas):
    subject = subject_of(atlas)
    before = facts(subject)
    path = atlas.root / 'tools/npu-smi/info.txt'
    path.write_text(path.read_text().replace('0000:81:00.0', 'NA'))
    cards, notes = subject.look()
    assert told(cards) == before
    assert notes == ['npu-smi info does not list 0000:81:00.0']


def test_a_memory_that_is_not_printed_stays(atlas):
    subject = subject_of(atlas)
    before = facts(subject)
    path = atlas.root / 'tools/npu-smi/info.txt'
    path.write_text(path.read_text().replace('3162 / 65536', 'NA   / NA   '))
    assert facts(subject) == before


@pytest.mark.parametrize(
    'text', ['This device does not support querying topo.', 'Unsupported', 'not supported']
)
def test_an_unsupported_query_is_no_fault(atlas, text):
    for answer in (f'{text}\n', driver.ToolError(f"npu-smi info -t topo: exit status 1: '{text}'")):
        atlas.answer({'info -t topo': answer})
        subject = subject_of(atlas)
        assert subject.look()[1] == []
        atlas.since()
        assert subject.look()[1] == []
        assert atlas.since() == ['info']


def test_a_new_card_alone_is_asked_for(atlas, tmp_path):
    place = atlas.root / 'sys/bus/pci/devices/0000:c1:00.0'
    link = place.readlink()
    place.unlink()
    subject = subject_of(atlas)
    before = facts(subject)
    atlas.since()
    place.symlink_to(link)
    cards = subject.discover()
    assert atlas.since() == ['info', 'info -m', BOARDS[0], DIES[0], 'info -t topo']
    for card in cards[:-2] + cards[-1:]:
        assert card.topology['links'].pop('0000:c1:00.0') == 1
    assert told(cards[:-2] + cards[-1:]) == before
    assert cards[-2].vendor_board == facts(subject_of(atlas))[-2]['vendor_board']


@pytest.mark.parametrize('change', ['device', 'subsystem_device'])
def test_another_card_at_the_address_inherits_nothing(atlas, change):
    subject = subject_of(atlas)
    subject.discover()
    card = atlas.tree.functions()[2]
    (card.path / change).write_text('0xd803')
    bdf = card.bdf
    atlas.answer(dict.fromkeys(['info', 'info -m', 'info -t topo', *BOARDS, *DIES], 'rubbish'))
    found = {card.address: card for card in subject.discover()}
    assert found[bdf].vendor_board == {}
    assert [c.vendor_board != {} for a, c in found.items() if a != bdf] == [True] * 7


def test_a_card_that_was_away_inherits_nothing(atlas):
    subject = subject_of(atlas)
    subject.discover()
    vendor = atlas.tree.functions()[2].path / 'vendor'
    vendor.write_text('0xffff')
    assert len(subject.discover()) == 7
    vendor.write_text('0x19e5')
    atlas.answer(dict.fromkeys(['info', 'info -m', 'info -t topo', *BOARDS, *DIES], 'rubbish'))
    assert [c.vendor_board == {} for c in subject.discover()].count(True) == 1


def test_another_chip_by_the_table_inherits_nothing(atlas):
    subject = subject_of(atlas)
    subject.discover()
    path = atlas.root / 'tools/npu-smi/info.txt'
    path.write_text(path.read_text().replace('| 2     910B3', '| 2     910B4'))
    atlas.answer({BOARDS[2]: 'rubbish'})
    [card] = [c for c in subject.discover() if c.vendor_board['npu_id'] == 2]
    assert card.model == 'Ascend 910B4'
    assert 'board_id' not in card.vendor_board
    assert card.deployables[0].traits == [*RELEASE, 'CUSTOM_NPU_910B', 'CUSTOM_NPU_910B4']


def test_firmware_is_told_by_the_board_and_goes_with_it(atlas):
    subject = subject_of(atlas)
    board = 'PCIe Bus Info : NA\nBoard ID : 0x32\nFirmware Version : 7.1.0.3.220\n'
    atlas.answer({BOARDS[2]: board})
    [card] = [c for c in subject.discover() if c.vendor_board['npu_id'] == 2]
    assert card.vendor_board['firmware_version'] == '7.1.0.3.220'
    assert 'CUSTOM_HUAWEI_ASCEND_FIRMWARE_7_1_0_3_220' in card.deployables[0].traits
    path = atlas.root / 'tools/npu-smi/info.txt'
    path.write_text(path.read_text().replace('| 2     910B3', '| 2     910B4'))
    atlas.answer({BOARDS[2]: 'rubbish'})
    [card] = [c for c in subject.discover() if c.vendor_board['npu_id'] == 2]
    assert 'firmware_version' not in card.vendor_board


def test_a_card_that_a_guest_has_keeps_its_facts_and_is_no_fault(atlas):
    subject = subject_of(atlas)
    before = facts(subject)
    [card] = [f for f in atlas.tree.functions() if f.bdf == '0000:c1:00.0']
    (card.path / 'driver').symlink_to('../../../bus/pci/drivers/vfio-pci')
    path = atlas.root / 'tools/npu-smi/info.txt'
    path.write_text(path.read_text().replace('0000:C1:00.0', 'NA'))
    cards, notes = subject.look()
    assert told(cards) == before
    assert notes == []


def test_a_tool_is_not_run_where_guests_have_all_cards(atlas):
    for card in atlas.tree.functions():
        if card.ids == ('19e5', 'd802'):
            (card.path / 'driver').symlink_to('../../../bus/pci/drivers/vfio-pci')
    subject_of(atlas).discover()
    assert atlas.since() == []


def test_reported_facts_do_not_change_afterwards(atlas):
    subject = subject_of(atlas)
    cards = subject.discover()
    before = json.dumps([card.facts() for card in cards])
    path = atlas.root / 'tools/npu-smi/info.txt'
    path.write_text(path.read_text().replace('65536', '32768'))
    subject.discover()
    assert json.dumps([card.facts() for card in cards]) == before


def test_a_slow_tool_is_asked_for_the_rest_in_the_next_look(atlas, monkeypatch):
    """Each query takes three seconds; queries that failed last time come last."""
    clock = captures.slow(monkeypatch, atlas, 'npu-smi', seconds=3)
    atlas.answer({BOARDS[0]: driver.ToolError('npu-smi: no answer')})
    subject = subject_of(atlas)
    told = 0
    for _ in range(6):
        begun = clock[0]
        cards, notes = subject.look()
        assert notes
        assert {card.model for card in cards} == {'Ascend 910B3'}
        # With one more query, which may take ten seconds, that is less than an interval.
        assert clock[0] - begun <= huawei_ascend.PATIENCE + 3
        boards = [card for card in cards if 'board_id' in card.vendor_board]
        assert len(boards) >= told
        told = len(boards)
    assert told == 7
    atlas.answer({})
    for _ in range(10):
        cards, notes = subject.look()
    assert notes == []
    assert all('board_id' in card.vendor_board for card in cards)


def test_sixteen_npus_whose_tool_takes_two_seconds(tmp_path, monkeypatch):
    """A report waits for half an interval; in the end a scan asks only for what changes."""
    buses = [f'{number:02x}' for number in range(16)]
    rows = [f'| {n} 910B3 | OK | |\n| 0 | 0000:{bus}:00.0 | 1/1 |' for n, bus in enumerate(buses)]
    tools = {'info': _table(*rows)}
    for n in range(16):
        tools[f'info -t board -i {n}'] = f'NPU ID : {n}\nSerial Number : 033EFS10N50{n:04}\n'
    functions = [captures.function(f'0000:{bus}:00.0', '19e5:d802') for bus in buses]
    host = Asked(captures.host(tmp_path, functions, {'npu-smi': tools}))
    clock = captures.slow(monkeypatch, host, 'npu-smi', seconds=2)
    subject, known = subject_of(host), 0
    while known < 16:
        begun = clock[0]
        cards, _ = subject.look()
        assert clock[0] - begun <= 10
        assert [card.model for card in cards] == ['Ascend 910B3'] * 16
        before, known = known, len([card for card in cards if card.serial])
        assert known > before
    for _ in range(3):
        subject.look()
    assert known == 16
    begun = clock[0]
    subject.look()
    assert clock[0] - begun == 2


def test_the_tool_by_itself(tmp_path, monkeypatch):
    """A real process: it fails for one query of one card, and is then removed."""
    copy = hosts.find('atlas-800t-a2', tmp_path / 'host')
    tool = tmp_path / 'bin/npu-smi'
    tool.parent.mkdir()
    tool.write_text(
        '#!/bin/sh\n'
        f'echo "$*" >> {tmp_path}/runs\n'
        'case "$*" in *"-i 5") exit 3;; esac\n'
        f'exec cat "{copy.root}/tools/npu-smi/$(echo "$*" | tr " " _).txt"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tool.parent}:{os.environ["PATH"]}')
    # The shipped server has no dies: the tool prints that this is not supported.
    for number in range(8):
        name = f'info_-t_board_-i_{number}_-c_0.txt'
        (copy.root / 'tools/npu-smi' / name).write_text('does not support it\n')
    subject = subject_of(driver.Host('local', copy.root, recorded=False))
    cards, notes = subject.look()
    assert notes == ["npu-smi info -t board -i 5: exit status 3: ''"]
    assert {card.model for card in cards} == {'Ascend 910B3'}
    runs = (tmp_path / 'runs').read_text().splitlines()
    assert len(runs) == 1 + 1 + 8 + 7 + 1
    before = told(cards)
    tool.unlink()
    cards, notes = subject.look()
    assert told(cards) == before
    assert notes == ['npu-smi is not there any more']


def tell(host: driver.Host, question: str, line: str) -> None:
    """Add a line to the tool's answer to a query."""
    path = host.root / 'tools' / 'npu-smi' / f'{question.replace(" ", "_")}.txt'
    path.write_text(f'{path.read_text() if path.exists() else "NPU ID : 0"}\n{line}\n')


def serials(cards: list[driver.Device]) -> dict[int, str | None]:
    return {card.vendor_board.get('npu_id'): card.serial for card in cards}


def test_a_card_is_known_by_the_serial_number_of_its_board(atlas):
    for number, board in enumerate(BOARDS):
        tell(atlas, board, f'\tSerial Number                  : 033EFS10N500{number:04}')
    subject = subject_of(atlas)
    assert serials(subject.discover()) == {n: f'033EFS10N500{n:04}' for n in range(8)}
    # Its die is not read.
    assert not set(atlas.since()) & {*DIES}


def test_a_card_without_serial_number_is_known_by_its_die(atlas):
    for number, die in enumerate(DIES):
        tell(atlas, die, f'VDie ID : 42C711D4 20B03704 4A10C8D4 14CC040A D210200{number}')
    found = serials(subject_of(atlas).discover())
    assert found == {n: f'42C711D4-20B03704-4A10C8D4-14CC040A-D210200{n}' for n in range(8)}


@pytest.mark.parametrize('text', ['NA', 'N/A', '-', '', '0000000000', 'x', 'a' * 65, 'ab\u202ecd'])
def test_an_invalid_serial_number(atlas, text):
    for question in BOARDS + DIES:
        tell(atlas, question, f'Serial Number : {text}')
        tell(atlas, question, f'VDie ID : {text}')
    assert set(serials(subject_of(atlas).discover()).values()) == {None}


def test_a_serial_number_of_two_cards_is_ignored(atlas):
    for number, board in enumerate(BOARDS):
        tell(atlas, board, f'Serial Number : PLACEHOLDER{max(1, number)}')
    found = serials(subject_of(atlas).discover())
    assert [found[n] for n in (0, 1, 2)] == [None, None, 'PLACEHOLDER2']
    # Their dies are not used instead: after one card is removed, the other would be a new card.
    for number in (0, 1):
        tell(atlas, DIES[number], f'VDie ID : 42C711D4 20B0370{number}')
    found = serials(subject_of(atlas).discover())
    assert [found[n] for n in (0, 1, 2)] == [None, None, 'PLACEHOLDER2']


def test_chips_of_one_card_behind_functions_of_their_own(tmp_path):
    """An A3 has one serial number for its two dies."""
    text = captures.text('ascend/A3-910C-npu4-two-chips-25.5.1.txt')
    tools = {'info': text, 'info -t board -i 4': 'NPU ID : 4\nSerial Number : 033EFS10N5000001'}
    host = captures.host(tmp_path, captures.from_npu_smi(text, '19e5:d803'), {'npu-smi': tools})
    assert [c.serial for c in discover(host)] == ['033EFS10N5000001/0', '033EFS10N5000001/1']


def test_chips_behind_one_function_are_one_card(tmp_path):
    host = hosts.find('atlas-300i-duo', tmp_path)
    for number in (1, 2, 4, 5):
        tell(host, f'info -t board -i {number}', f'Serial Number : 033EFS10N500000{number}')
    found = serials(discover(host))
    assert found == {n: f'033EFS10N500000{n}' for n in (1, 2, 4, 5)}


def test_the_die_of_a_real_card(tmp_path):
    """The capture has the output of several commands."""
    text = captures.text('ascend/910A-lspci-board-usages-23.0.5.txt')
    sections = dict(part.partition('\n')[::2] for part in text.split('/usr/local/bin/npu-smi ')[1:])
    tools = {
        'info -m': sections['info -m'],
        'info -t board -i 0': sections['info -i 0 -t board'],
        'info -t board -i 0 -c 0': sections['info -i 0 -c 0 -t board'],
    }
    host = captures.host(tmp_path, captures.from_lspci(text), {'npu-smi': tools})
    assert {c.address: c.serial for c in discover(host) if c.serial} == {
        '0000:61:00.0': '42C711D4-20B03704-4A10C8D4-14CC040A-D2102003'
    }


def test_two_cards_that_change_slots_take_their_numbers_along(atlas):
    """After the necessary reboot; the tool counts by slot."""
    for number, board in enumerate(BOARDS):
        tell(atlas, board, f'Serial Number : 033EFS10N500{number:04}')
    first = serials(subject_of(atlas).discover())
    tools = atlas.root / 'tools/npu-smi'
    one, two = (tools / f'info_-t_board_-i_{n}.txt' for n in (2, 3))
    text = one.read_text()
    one.write_text(text.replace('N5000002', 'N5000003'))
    two.write_text(two.read_text().replace('N5000003', 'N5000002'))
    second = serials(subject_of(atlas).discover())
    assert (second[2], second[3]) == (first[3], first[2])


def test_a_card_that_the_kernel_adds_anew_is_asked_for_its_number(atlas, tmp_path):
    """It may be another card of the same kind, without the old facts."""
    tell(atlas, BOARDS[2], 'Serial Number : 033EFS10N5000002')
    subject = subject_of(atlas)
    before = {c.vendor_board['npu_id']: c for c in subject.discover()}
    path = next(f.path for f in atlas.tree.functions() if f.bdf == before[2].address)
    shutil.copytree(path, tmp_path / 'anew', symlinks=True)
    path.rename(tmp_path / 'removed')
    (tmp_path / 'anew').rename(path)
    tell(atlas, BOARDS[2], 'Serial Number : 033EFS10N5000009')
    atlas.answer({'info -t topo': 'rubbish'})
    after = {c.vendor_board['npu_id']: c for c in subject.discover()}
    assert (before[2].serial, after[2].serial) == ('033EFS10N5000002', '033EFS10N5000009')
    assert 'hccs_peers' not in after[2].vendor_board
    assert after[2].topology is None
    assert after[3].facts() == before[3].facts()


def _table(*rows: str, heading: str = '| Chip | Bus-Id |') -> str:
    return '\n'.join(['| NPU Name | Health |', heading, *rows])


@pytest.mark.parametrize(
    ('ids', 'name', 'model'),
    [
        ('19e5:d806', 'Ascend950PR', 'Ascend 950PR'),
        ('19e5:d806', 'Ascend950DT', 'Ascend 950DT'),
        ('19e5:d802', '910B4-1', 'Ascend 910B4-1'),
        ('19e5:d802', '910ProB', 'Ascend 910B'),
        ('19e5:d801', '910B', 'Ascend 910'),
        ('19e5:d801', '910ProB', 'Ascend 910'),
        ('19e5:d100', '310P3', 'Ascend 310'),
        ('19e5:d500', '310P3', 'Ascend 310P3'),
        ('19e5:d806', '950PR; rm -rf /', 'Ascend 950'),
    ],
)
def test_letters_follow_where_a_family_has_them(tmp_path, ids, name, model):
    said = {'info': _table(f'| 0 {name} | OK |', '| 0 | 0000:01:00.0 |')}
    host = captures.host(tmp_path, [captures.function('0000:01:00.0', ids)], {'npu-smi': said})
    [card] = discover(host)
    assert card.model == model


def _a3(tmp_path, **more):
    functions = [captures.function(f'0000:{bus}:00.0', '19e5:d803') for bus in ('8d', '8f')]
    rows = [
        '| 4 Ascend910 | OK | |',
        '| 0 8 | 0000:8D:00.0 | 51255/ 65536 |',
        '| 4 Ascend910 | OK | |',
        '| 1 9 | 0000:8F:00.0 | 0 / 0 |',
    ]
    said = {'info': _table(*rows, heading='| Chip Phy-ID | Bus-Id | HBM |')} | more
    return captures.host(tmp_path, functions, {'npu-smi': said})


def test_a3_has_its_name_on_the_chip(tmp_path):
    board = 'NPU ID : 4\nChip Name : Ascend910\nNPU Name : {}\nVDie ID : A1 B2 {}\n'
    said = {f'info -t board -i 4 -c {n}': board.format('9392', n) for n in (0, 1)}
    cards = discover(_a3(tmp_path, **{'info -t board -i 4': 'NPU ID : 4\nBoard ID : 0xb\n'} | said))
    assert [card.model for card in cards] == ['Ascend 910_9392'] * 2
    assert {'CUSTOM_NPU_910C', 'CUSTOM_NPU_910_9392'} <= {
        each.value for each in cards[0].deployables[0].attributes
    }


@pytest.mark.evidence('huawei_ascend', 'excerpt', 'npu-smi 25.7.rc1.6 of a 950PR', 'Ascend 950')
@pytest.mark.parametrize(
    ('chip', 'sub', 'model', 'traits'),
    [
        ('Ascend950PR', '9579', 'Ascend 950PR_9579', ['CUSTOM_NPU_950PR', 'CUSTOM_NPU_950PR_9579']),
        ('Ascend950PR', 'NA', 'Ascend 950PR', ['CUSTOM_NPU_950PR']),
        ('Ascend950PR', '9579; rm', 'Ascend 950PR', ['CUSTOM_NPU_950PR']),
        ('NA', '9579', 'Ascend 950PR', ['CUSTOM_NPU_950PR']),
        ('910B3', '9579', 'Ascend 950PR', ['CUSTOM_NPU_950PR']),
    ],
)
def test_950_has_its_variant_on_the_board(tmp_path, chip, sub, model, traits):
    table = (
        '| NPU ID | Name        | Health       | Power(W)    Temp(C)  Hugepages-Usage(page) |\n'
        '|        |             | Bus-Id       | NPU Util(%) Memory-Usage(MB) HBM-Usage(MB) |\n'
        '| 0      | Ascend950PR | OK           | 195.6       56              0     / 0      |\n'
        '|        |             | 0000:61:00.0 | 0           0 / 0           5239  / 131072 |\n'
    )
    board = (
        f'NPU ID : 0\nNPU Name : {sub}\nChip Name : {chip}\nSerial Number : 10264L500001\n'
        'Firmware Version : 9.0.0.105.229\nBoard ID : 0x1a\nPCIe Bus Info : 0000:61:00.0\n'
    )
    said = {'npu-smi': {'info': table, 'info -t board -i 0': board}}
    function = captures.function('0000:61:00.0', '19e5:d806')
    [card] = discover(captures.host(tmp_path, [function], said))
    assert (card.model, card.serial) == (model, '10264L500001')
    assert card.vendor_board['chips'] == [{'memory_mb': 131072}]
    assert card.vendor_board['firmware_version'] == '9.0.0.105.229'
    told = [each for each in card.deployables[0].traits if each.startswith('CUSTOM_NPU')]
    assert told == ['CUSTOM_NPU_950', *traits]


def test_a_firmware_that_the_user_may_not_read_is_none(atlas):
    tell(atlas, BOARDS[0], 'Firmware Version : NA')
    for card in subject_of(atlas).discover():
        assert 'firmware_version' not in card.vendor_board
        assert not any('FIRMWARE' in each for each in card.deployables[0].traits)


def test_a3_tells_the_links_of_dies(tmp_path):
    topology = (
        '           Phy-ID8    Phy-ID9    Phy-ID10   CPU Affinity\n'
        'Phy-ID8    X          SIO        HCCS_SW    0-39\n'
        'Phy-ID9    SIO        X          HCCS_SW    0-39\n'
    )
    cards = discover(_a3(tmp_path, **{'info -t topo': topology}))
    assert [card.vendor_board['hccs_peers'] for card in cards] == [[10], [10]]
    # Phy-ID10 is of no card of this host.
    assert [card.topology for card in cards] == [
        {'links': {'0000:8f:00.0': 2}}, {'links': {'0000:8d:00.0': 2}}
    ]  # fmt: skip


def test_two_dies_of_a_card_are_linked_before_the_topology_is_known(tmp_path):
    cards = discover(_a3(tmp_path))
    assert [card.topology for card in cards] == [
        {'links': {'0000:8f:00.0': 2}}, {'links': {'0000:8d:00.0': 2}}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('ids', 'rows'),
    [
        # The chips of a 310 card, which no links connect.
        ('19e5:d100', ['| 4 310 | OK | |', '| 0 8 | 0000:8D:00.0 | |',
                       '| 4 310 | OK | |', '| 1 9 | 0000:8F:00.0 | |']),
        # The dies of two cards.
        ('19e5:d803', ['| 4 Ascend910 | OK | |', '| 0 8 | 0000:8D:00.0 | |',
                       '| 5 Ascend910 | OK | |', '| 0 10 | 0000:8F:00.0 | |']),
        # npu-smi tells nothing of them.
        ('19e5:d803', []),
    ],
)  # fmt: skip
def test_other_chips_have_no_link_without_the_topology(tmp_path, ids, rows):
    functions = [captures.function(f'0000:{bus}:00.0', ids) for bus in ('8d', '8f')]
    said = {'info': _table(*rows, heading='| Chip Phy-ID | Bus-Id | HBM |')}
    cards = discover(captures.host(tmp_path, functions, {'npu-smi': said}))
    assert [card.topology for card in cards] == [None, None]


def test_two_rings_of_a_real_server(tmp_path):
    """The cards are as npu-smi of an Atlas 800 9010 shows them; its matrix is not recorded."""
    table = captures.text('ascend/910A-atlas800-9010-22.0.3.1.info.txt')
    said = {'info': table, 'info -t topo': captures.rings(4, 4)}
    functions = captures.from_npu_smi(table, '19e5:d801')
    cards = discover(captures.host(tmp_path, functions, {'npu-smi': said}))
    rings = [{'61', 'db', 'b2', '3e'}, {'60', 'da', 'b1', '3d'}]
    assert len(cards) == 8
    for card in cards:
        ring = next(ring for ring in rings if card.address[5:7] in ring)
        peers = {f'0000:{bus}:00.0' for bus in ring} - {card.address}
        assert card.topology == {'links': dict.fromkeys(peers, 1)}


@pytest.mark.parametrize(
    ('word', 'count'),
    [('HCCS', 1), ('HCCS_SW', 1), ('XLink', 1), ('XLink_SW', 1), ('UB', 1), ('SIO', 2),
     ('PHB', 0), ('SYS', 0), ('PIX', 0), ('PXB', 0), ('NA', 0), ('X', 0), ('HCCSX', 0), ('-', 0)],
)  # fmt: skip
def test_the_words_of_the_matrix(word, count):
    text = f'NPU0 NPU1 CPU\nNPU0 X {word} 0-23\n'
    found = printed.parse_topology(text)
    assert {peer: printed.LINKS[link] for peer, link in found['NPU', 0].items()} == (
        {1: count} if count else {}
    )


def test_memory_that_is_not_known_is_absent(tmp_path):
    chips = [card.vendor_board['chips'] for card in discover(_a3(tmp_path))]
    assert chips == [
        [{'chip_id': 0, 'phy_id': 8, 'memory_mb': 65536}],
        [{'chip_id': 1, 'phy_id': 9}],
    ]


def test_the_controller_of_a_board_is_no_chip():
    text = (
        'NPU ID  Chip ID  Chip Logic ID  Chip Name\n'
        '1       0        0              Ascend 310P3\n'
        '1       1        7              Mcu\n'
    )
    assert [row['chip_id'] for row in printed.parse_mapping(text)] == [0]


def test_the_controller_of_a_board_is_no_chip_where_no_table_names_it(tmp_path):
    """The chips are then those of the mapping, and the boards have the addresses."""
    mapping = (
        'NPU ID  Chip ID  Chip Logic ID  Chip Name\n'
        '1       0        0              Ascend 310P3\n'
        '1       1        1              Ascend 310P3\n'
        '1       2        7              Mcu\n'
    )
    said = {'info -m': mapping, 'info -t board -i 1': 'NPU ID : 1\nPCIe Bus Info : 0000:01:00.0\n'}
    function = captures.function('0000:01:00.0', '19e5:d500')
    [card] = discover(captures.host(tmp_path, [function], {'npu-smi': said}))
    assert card.model == 'Ascend 310P3'
    assert card.vendor_board['chips'] == [{'chip_id': n, 'logic_id': n} for n in (0, 1)]


def _with_nodes(host, *nodes):
    (host.root / 'dev').mkdir(exist_ok=True)
    for node in nodes:
        (host.root / 'dev' / node).touch()
    return [bool(card.unusable) for card in discover(host)]


@pytest.mark.parametrize(
    ('nodes', 'unusable'),
    [
        (['davinci8', 'davinci9'], [False, False]),
        (['vdavinci228'], [True, False]),
        (['vdavinci243', 'vdavinci244'], [True, True]),
        (['vdavinci100'], [False, False]),
        (['vdavinci', 'vdavinci9', 'vdavinci99999999'], [False, False]),
    ],
)
def test_a_card_that_is_split_is_not_offered_whole(tmp_path, nodes, unusable):
    assert _with_nodes(_a3(tmp_path), *nodes) == unusable


def test_a_vnpu_of_an_unknown_card_may_be_of_each_card(tmp_path):
    functions = [captures.function(f'0000:0{n}:00.0', '19e5:d802') for n in (1, 2)]
    host = captures.host(tmp_path, functions)
    assert _with_nodes(host) == [False, False]
    assert _with_nodes(host, 'vdavinci100') == [True, True]


def reword(host: driver.Host, bus: str, word: str) -> None:
    """Change the health that npu-smi prints for the chips at an address."""
    path = host.root / 'tools/npu-smi/info.txt'
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if bus in line:
            cells = lines[number - 1].split('|')
            column = next(n for n, cell in enumerate(line.split('|')) if bus in cell)
            cells[column] = f' {word} '
            lines[number - 1] = '|'.join(cells)
    path.write_text('\n'.join(lines))


def leave_out(host: Asked, bus: str) -> None:
    """Remove the card at an address from the output of npu-smi."""
    lines = host.run('npu-smi', 'info').splitlines(keepends=True)
    row = next(n for n, line in enumerate(lines) if bus in line)
    number = lines[row - 1].split()[1]
    mapping = host.run('npu-smi', 'info', '-m').splitlines(keepends=True)
    host.answer(
        {
            'info': ''.join(lines[: row - 1] + lines[row + 1 :]),
            'info -m': ''.join(line for line in mapping if line.split()[:1] != [number]),
        }
    )


def health(subject: huawei_ascend.HuaweiAscend, address: str = '0000:c1:00.0') -> tuple:
    [card] = [card for card in subject.discover() if card.address == address]
    return card.health, card.health_reason


@pytest.mark.parametrize(
    ('word', 'level', 'reason'),
    [
        ('OK', 'ok', None),
        ('Warning', 'warning', 'ascend_warning'),
        ('Alarm', 'critical', 'ascend_alarm'),
        ('ALARM', 'critical', 'ascend_alarm'),
        ('Critical', 'critical', 'ascend_critical'),
        ('UNKNOWN', 'unknown', None),
        ('', 'unknown', None),
        ('Fine\u202e' + 'x' * 5000, 'unknown', None),
    ],
)
def test_health_by_the_words_of_the_table(atlas, word, level, reason):
    reword(atlas, '0000:C1:00.0', word)
    subject = subject_of(atlas)
    assert health(subject) == (level, reason)
    assert {card.health for card in subject.discover() if card.address != '0000:c1:00.0'} == {'ok'}


def test_the_link_of_a_guests_card_does_not_make_it_healthy(atlas):
    """An agent that starts meanwhile has no earlier data of it."""
    [card] = [f for f in atlas.tree.functions() if f.bdf == '0000:c1:00.0']
    (card.path / 'driver').symlink_to('../../../bus/pci/drivers/vfio-pci')
    for name in ('current_link_width', 'max_link_width'):
        (card.path / name).write_text('16')
    leave_out(atlas, '0000:C1:00.0')
    assert health(subject_of(atlas)) == ('unknown', None)


def test_a_chip_that_is_no_longer_listed_has_unknown_health(tmp_path):
    """The other chip of the card is still reported, and is healthy."""
    host = testing.Host(hosts.find('atlas-300i-duo', tmp_path))
    lines = host.run('npu-smi', 'info').splitlines(keepends=True)
    row = next(n for n, line in enumerate(lines) if '0000:01:00.0' in line)
    ill = [*lines[: row - 1], lines[row - 1].replace('| OK    ', '| Alarm '), *lines[row:]]
    subject = huawei_ascend.HuaweiAscend(host, cfg.ConfigOpts())
    for table, found in (
        (lines, ('ok', None)),
        (ill, ('critical', 'ascend_alarm')),
        (lines[: row - 1] + lines[row + 2 :], ('unknown', None)),
        (lines, ('ok', None)),
    ):
        host.tools['npu-smi info'] = ''.join(table)
        assert health(subject, '0000:01:00.0') == found


def test_a_card_that_alone_is_not_listed_has_unknown_health(atlas):
    """After a reboot npu-smi does not list a chip that its driver could not start."""
    [card] = [f for f in atlas.tree.functions() if f.bdf == '0000:c1:00.0']
    for name in ('current_link_width', 'max_link_width'):
        (card.path / name).write_text('16')
    leave_out(atlas, '0000:C1:00.0')
    assert health(subject_of(atlas)) == ('unknown', None)


@pytest.mark.parametrize(
    ('printed', 'more'),
    [
        ('80E01801', '_80e01801'),
        ('0x80E01801, 0x80E18402', '_80e01801'),
        ('NA', ''),
        ('', ''),
        ('../../etc; rm -rf', ''),
    ],
)
def test_an_error_code_is_part_of_the_reason(atlas, printed, more):
    reword(atlas, '0000:C1:00.0', 'Alarm')
    subject = subject_of(atlas)
    question = 'info -t health -i 0 -c 0'
    atlas.answer({question: f'Health Status : Alarm\nError Code : {printed}\n'})
    assert health(subject) == ('critical', f'ascend_alarm{more}')
    # Others are not queried. After a failed query the code of the last scan stays.
    assert [run for run in atlas.since() if 'health' in run] == [question]
    atlas.answer({question: driver.ToolError('npu-smi: exit status 1')})
    assert health(subject) == ('critical', f'ascend_alarm{more}')
    reword(atlas, '0000:C1:00.0', 'OK')
    atlas.since()
    assert health(subject) == ('ok', None)
    assert [run for run in atlas.since() if 'health' in run] == []


def test_the_worse_chip_counts_for_a_card_of_two(tmp_path):
    host = hosts.find('atlas-300i-duo', tmp_path)
    path = host.root / 'tools/npu-smi/info.txt'
    lines = path.read_text().splitlines()
    rows = [n for n, line in enumerate(lines) if '| OK ' in line]
    lines[rows[1]] = lines[rows[1]].replace('| OK ', '| Alarm ')
    path.write_text('\n'.join(lines))
    cards = subject_of(host).discover()
    assert [card.health for card in cards].count('critical') == 1


@pytest.mark.parametrize('failure', [testing.Fault.FAILS, 'rubbish', testing.Fault.MISSING])
def test_absent_health_is_unknown(atlas, failure):
    """A card with an alarm does not recover by this, and a healthy one is not faulty."""
    reword(atlas, '0000:C1:00.0', 'Alarm')
    subject = subject_of(atlas)
    assert health(subject) == ('critical', 'ascend_alarm')
    atlas.answer({'info': failure})
    assert health(subject) == ('unknown', None)
    assert {card.health for card in subject.discover()} == {'unknown'}


@pytest.mark.parametrize('chip', [False, True])
def test_memory_of_the_processes_of_real_cards(tmp_path, chip):
    """By pid; a second chip of the card is added, and what is no pid is left out."""
    text = captures.text('ascend/910-8card-processes-23.0.rc3.txt')
    buses = {found.lower() for found in re.findall(r'[0-9A-Fa-f:]{10}\.0', text)}
    [row] = [line for line in text.splitlines() if ' 139667 ' in line]
    if chip:
        more = row.replace('0       0', '0       1').replace('30780', '12   ')
        text = text.replace(row, f'{row}\n{more}\n{row.replace("139667", "9999999")}')
    functions = [captures.function(bus, '19e5:d802') for bus in sorted(buses)]
    cards = discover(captures.host(tmp_path, functions, {'npu-smi': {'info': text}}))
    told = {card.vendor_board['npu_id']: card.memory for card in cards}
    assert told[0] == {139667: 30792 if chip else 30780}
    assert (told[1], told[7], len(told)) == ({139577: 30782}, {139090: 30780}, 8)
    assert all('memory' not in card.facts() for card in cards)


def test_the_table_of_processes():
    """Of each card, all chips together; rows above the heading are of other things."""
    rows = (
        '| 5 0 | 7 | python | 9 |',
        '| NPU     Chip | Process id | Process name             Process memory(MB) |',
        '| 0       0 | 139667 | python | 30780 |',
        '| 0       1 | 139667 | python 3.11 12 |',
        '| 1       0 | 9999999 | python | 1 |',
        '| 1       0 | 0 | python | 1 |',
        '| No running processes found in NPU 7 |',
    )
    assert printed.parse_processes('\n'.join(rows)) == {0: {139667: 30792}}
    assert printed.parse_processes(rows[0]) == {}


def test_cards_without_processes_tell_no_memory(atlas):
    assert {card.memory for card in subject_of(atlas).discover()} == {None}


@pytest.mark.parametrize(
    ('capture', 'ids', 'busy'),
    [
        ('310P3-duo-4cards-25.5.1', '19e5:d500', '0000:82:00.0'),
        ('910-8card-processes-23.0.rc3', '19e5:d802', '0000:82:00.0'),
        ('910A-atlas800-9010-22.0.3.1.info', '19e5:d801', '0000:db:00.0'),
        ('A3-910C-npu4-two-chips-25.5.1', '19e5:d803', '0000:8f:00.0'),
        ('310-atlas800-3000-20.2.0.info', '19e5:d100', '0000:dd:00.0'),
    ],
)
@pytest.mark.parametrize(('printed', 'told'), [('0', 0), ('37', 37), ('NA', None), ('-', None)])
def test_utilization_of_real_cards(tmp_path, capture, ids, busy, printed, told):
    """All captures are of cards at 0 %."""
    lines = captures.text(f'ascend/{capture}.txt').splitlines()
    [*_, row] = [n for n, line in enumerate(lines) if busy in line.lower()]
    before, after = lines[row].lower().split(busy)
    lines[row] = before + busy + re.sub(r'\b0\b', printed, after, count=1)
    buses = {
        found[1] for line in lines if (found := re.search(r'([0-9a-f:]{10}\.0) ', line.lower()))
    }
    functions = [captures.function(bus, ids) for bus in sorted(buses)]
    tools = {'npu-smi': {'info': '\n'.join(lines)}}
    cards = discover(captures.host(tmp_path, functions, tools))
    expected = dict.fromkeys(buses, 0) | {busy: told}
    assert {card.address: card.utilization for card in cards} == expected
    assert all('utilization' not in card.facts() for card in cards)


@pytest.mark.parametrize(
    ('printed', 'told'), [('0', 0), ('37', 37), ('100', 100), ('101', None), ('NA', None)]
)
def test_utilization_of_a_card_of_two(tmp_path, printed, told):
    """The busier chip counts, and both have to tell."""
    host = hosts.find('atlas-300i-duo', tmp_path)
    path = host.root / 'tools/npu-smi/info.txt'
    lines = path.read_text().splitlines()
    row = next(n for n, line in enumerate(lines) if re.search(r':00\.0 +\| 0 ', line))
    lines[row] = re.sub(r'(:00\.0 +\|) 0 ', rf'\1 {printed} ', lines[row])
    path.write_text('\n'.join(lines))
    cards = subject_of(host).discover()
    assert [card.utilization for card in cards].count(0) == (4 if told == 0 else 3)
    assert told in [card.utilization for card in cards]
    assert all('utilization' not in card.facts() for card in cards)


def test_utilization_of_a_950(tmp_path):
    """Its column has another name."""
    table = TABLE.replace('AICore(%)', 'NPU Util(%)').replace('| 0 0 / 0', '| 99 0 / 0')
    function = captures.function('0000:01:00.0', '19e5:d806')
    host = captures.host(tmp_path, [function], {'npu-smi': {'info': table}})
    assert [card.utilization for card in discover(host)] == [99]


@pytest.mark.parametrize('failure', [testing.Fault.FAILS, 'rubbish', testing.Fault.MISSING])
def test_utilization_of_an_earlier_scan_is_not_told(atlas, failure):
    subject = subject_of(atlas)
    assert {card.utilization for card in subject.discover()} == {0}
    atlas.answer({'info': failure})
    assert {card.utilization for card in subject.discover()} == {None}


def test_health_of_a_real_card_in_a_warning(tmp_path):
    text = captures.text('ascend/910-health-Warning-23.0.5.txt')
    functions = [captures.function(f'0000:{bus}:00.0', '19e5:d801') for bus in ('61', '3d')]
    cards = discover(captures.host(tmp_path, functions, {'npu-smi': {'info': text}}))
    assert {card.address: (card.health, card.health_reason) for card in cards} == {
        '0000:61:00.0': ('warning', 'ascend_warning'),
        '0000:3d:00.0': ('ok', None),
    }
