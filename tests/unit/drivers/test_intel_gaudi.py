# SPDX-License-Identifier: Apache-2.0
"""Gaudi accelerators."""

from __future__ import annotations

import json
import re
import sys
import types

import hypothesis
from hypothesis import strategies as st
import pytest

from cyborg_lite import driver
from cyborg_lite.driver import recording
from cyborg_lite.driver import testing
from cyborg_lite.drivers import intel_gaudi
from cyborg_lite.drivers.tools import hlml as library
from tests.unit.drivers import captures


@pytest.mark.parametrize(
    ('ids', 'pci_class', 'models'),
    [
        ('1da3:1060', '120000', ['Intel Gaudi 3']),
        ('1da3:1063', '120000', ['Intel Gaudi 3 PCIe']),
        ('1da3:1020', '020000', []),
    ],
)
def test_which_are_cards(tmp_path, ids, pci_class, models):
    host = captures.host(tmp_path, [captures.function('0000:19:00.0', ids, pci_class)])
    cards = testing.discover(intel_gaudi.IntelGaudi, host)
    assert [card.model for card in cards] == models
    assert all(card.deployables[0].resource_class == 'CUSTOM_HPU' for card in cards)


@pytest.mark.parametrize(
    ('node', 'board'),
    [('accel/accel3', {'index': 3}), ('habanalabs/hl7', {'index': 7}), ('accel/other', {})],
)
def test_a_gaudi_has_the_number_of_its_node(tmp_path, node, board):
    card = captures.function('0000:19:00.0', '1da3:1020', files={f'{node}/dev': '261:3'})
    [found] = testing.discover(intel_gaudi.IntelGaudi, captures.host(tmp_path, [card]))
    assert found.vendor_board == board


@pytest.mark.parametrize('directory', ['accel/accel3', 'habanalabs/hl3'])
@pytest.mark.parametrize('name', ['cpucp_ver', 'armcp_ver'])
def test_the_firmware_of_the_control_processor(tmp_path, directory, name):
    files = {f'{directory}/{name}': 'hl-gaudi2-1.21.1-fw-59.2.1\n'}
    card = captures.function('0000:19:00.0', '1da3:1020', files=files)
    [found] = testing.discover(intel_gaudi.IntelGaudi, captures.host(tmp_path, [card]))
    assert found.vendor_board['firmware_version'] == 'hl-gaudi2-1.21.1-fw-59.2.1'


@pytest.mark.parametrize('place', ['status', 'accel/accel3/status', 'habanalabs/hl3/status'])
@pytest.mark.parametrize(
    ('status', 'expected'),
    [
        ('Operational', ('ok', None)),
        ('Disabled', ('critical', 'gaudi_disabled')),
        ('Malfunction', ('critical', 'gaudi_disabled')),
        ('Needs reset', ('critical', 'gaudi_needs_reset')),
        ('Needs Reset', ('critical', 'gaudi_needs_reset')),
        ('In reset', ('unknown', None)),
        ('In device creation', ('unknown', None)),
    ],
)
def test_health_by_the_kernel(tmp_path, place, status, expected):
    card = captures.function('0000:19:00.0', '1da3:1020', files={place: status})
    [found] = testing.discover(intel_gaudi.IntelGaudi, captures.host(tmp_path, [card]))
    assert (found.health, found.health_reason) == expected


@pytest.mark.evidence('intel_gaudi', 'real capture', 'hl-smi 1.17.1 of two', 'Intel Gaudi 2')
def test_cards_of_another_tool(tmp_path):
    text = captures.text('intel/gaudi2-hl-smi-1.17.1.txt')
    rows = re.findall(r'^\|\s+([0-9]+)\s+HL-225\s.*?\| (\S+)', text, re.MULTILINE)
    # The tool prints no id; an HL-225 is a Gaudi 2.
    functions = [
        captures.function(bdf, '1da3:1020', files={f'accel/accel{index}/dev': f'261:{index}'})
        for index, bdf in rows
    ]
    cards = testing.discover(intel_gaudi.IntelGaudi, captures.host(tmp_path, functions))
    assert [(card.address, card.model, card.vendor_board) for card in cards] == [
        ('0000:4d:00.0', 'Intel Gaudi 2', {'index': 0}),
        ('0000:b4:00.0', 'Intel Gaudi 2', {'index': 1}),
    ]


class HLMLError(Exception):
    """As pyhlml's: it has the number of hlml_return_t."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value


NO_CALL, NOT_SUPPORTED, NOT_FOUND, NOT_LOADED, LOST, NO_DATA, UNKNOWN = 2, 3, 6, 9, 15, 21, 49


def refuse(error):
    def call(*args):
        raise error

    return call


@pytest.fixture
def hlml(monkeypatch, tmp_path):
    """A library with the calls of pyhlml 1.24 that knows both cards, in place of the real one."""
    names = {'0000:19:00.0': 0, '0000:1a:00.0': 1}

    def find(address: str) -> int:
        if address not in names:
            raise HLMLError(NOT_FOUND)
        return names[address]

    module = types.SimpleNamespace(
        hlmlInit=lambda: None,
        hlmlShutdown=lambda: None,
        hlmlDeviceGetHandleByPCIBusID=find,
        hlmlDeviceGetUtilizationRates=lambda card: types.SimpleNamespace(aip=40 + card, memory=9),
        hlmlDeviceGetTotalECCErrors=lambda card, kind, counter: 0,
        hlmlDeviceGetReplacedRowsPendingStatus=lambda card: 0,
    )
    monkeypatch.setitem(sys.modules, 'pyhlml', module)
    (tmp_path / 'libhlml.so').touch()
    monkeypatch.setattr(library, 'LIBRARY', str(tmp_path / 'libhlml.so'))
    return module


@pytest.fixture
def local(tmp_path):
    files = {'accel/accel0/status': 'Operational'}
    cards = [
        captures.function(f'0000:{bus}:00.0', '1da3:1020', driver='habanalabs', files=files)
        for bus in ('19', '1a')
    ]
    return driver.Host('local', captures.host(tmp_path, cards).root, recorded=False)


def seen(subject: intel_gaudi.IntelGaudi) -> list[tuple]:
    return [(c.health, c.health_reason, c.utilization) for c in subject.look()[0]]


def on_first(value, other=0):
    """A call that answers so of the first card."""
    return lambda card, *args: other if card else value


def test_hlml_adds_what_it_knows(hlml, local):
    cards = testing.discover(intel_gaudi.IntelGaudi, local)
    assert [(c.health, c.utilization) for c in cards] == [('ok', 40), ('ok', 41)]


@pytest.mark.parametrize('absent', ['package', 'library'])
def test_without_hlml_sysfs_has_all_cards(hlml, local, monkeypatch, capsys, absent):
    if absent == 'package':
        monkeypatch.setitem(sys.modules, 'pyhlml', None)
    else:
        # It would print a line, which is no part of the output of a command.
        hlml.hlmlInit = lambda: print('Failed to load libhlml') or refuse(HLMLError(1))()
        monkeypatch.setattr(library, 'LIBRARY', '/nonexistent')
    subject = intel_gaudi.IntelGaudi(local, None)
    cards, notes = subject.look()
    assert [(c.address, c.health, c.utilization) for c in cards] == [
        ('0000:19:00.0', 'ok', None),
        ('0000:1a:00.0', 'ok', None),
    ]
    assert notes == []
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    ('call', 'answer', 'expected'),
    [
        ('hlmlDeviceGetTotalECCErrors', 3, ('critical', 'gaudi_ecc')),
        ('hlmlDeviceGetReplacedRowsPendingStatus', 1, ('warning', 'gaudi_row_pending')),
        ('hlmlDeviceGetTotalECCErrors', 'rubbish', ('unknown', None)),
        ('hlmlDeviceGetTotalECCErrors', None, ('unknown', None)),
    ],
)
def test_health_by_hlml(hlml, local, call, answer, expected):
    setattr(hlml, call, on_first(answer))
    found = seen(intel_gaudi.IntelGaudi(local, None))
    assert [each[:2] for each in found] == [expected, ('ok', None)]


@pytest.mark.parametrize(
    'call',
    [
        'hlmlDeviceGetUtilizationRates',
        'hlmlDeviceGetTotalECCErrors',
        'hlmlDeviceGetReplacedRowsPendingStatus',
    ],
)
def test_a_library_without_a_call_tells_what_it_has(hlml, local, call):
    """An older libhlml: pyhlml raises so where it does not find the symbol."""
    setattr(hlml, call, refuse(HLMLError(NO_CALL)))
    cards, notes = intel_gaudi.IntelGaudi(local, None).look()
    assert ([card.health for card in cards], notes) == (['ok', 'ok'], [])


def test_only_errors_of_this_load_that_were_not_corrected_count(hlml, local):
    asked = []
    hlml.hlmlDeviceGetTotalECCErrors = lambda card, *kind: asked.append(kind) or 0
    seen(intel_gaudi.IntelGaudi(local, None))
    # HLML_MEMORY_ERROR_TYPE_UNCORRECTED and HLML_VOLATILE_ECC of pyhlml.
    assert {*asked} == {(1, 0)}


@pytest.mark.parametrize(
    'call',
    [
        'hlmlDeviceGetHandleByPCIBusID',
        'hlmlDeviceGetUtilizationRates',
        'hlmlDeviceGetTotalECCErrors',
        'hlmlDeviceGetReplacedRowsPendingStatus',
    ],
)
@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (HLMLError(LOST), ('critical', 'gaudi_lost')),
        (HLMLError(NOT_SUPPORTED), ('ok', None)),
        (HLMLError(NO_DATA), ('ok', None)),
        (HLMLError(UNKNOWN), ('unknown', None)),
        (ValueError('rubbish'), ('unknown', None)),
    ],
)
def test_a_call_that_fails_affects_no_other_card(hlml, local, call, error, expected):
    plain = getattr(hlml, call)

    def fail(card, *args):
        if card in (0, '0000:19:00.0'):
            raise error
        return plain(card, *args)

    setattr(hlml, call, fail)
    found = seen(intel_gaudi.IntelGaudi(local, None))
    assert [each[:2] for each in found] == [expected, ('ok', None)]
    assert found[1][2] == 41


@pytest.mark.parametrize(
    ('error', 'notes'), [(HLMLError(NOT_LOADED), 0), (HLMLError(UNKNOWN), 1), (OSError('x'), 1)]
)
def test_a_library_that_does_not_load_loses_no_card(hlml, local, error, notes):
    hlml.hlmlInit = refuse(error)
    subject = intel_gaudi.IntelGaudi(local, None)
    cards, told = subject.look()
    assert ([card.health for card in cards], len(told)) == (['ok', 'ok'], notes)


def test_a_card_of_which_hlml_has_told_does_not_become_well_by_silence(hlml, local, monkeypatch):
    hlml.hlmlDeviceGetTotalECCErrors = on_first(1)
    subject = intel_gaudi.IntelGaudi(local, None)
    assert seen(subject)[0] == ('critical', 'gaudi_ecc', 40)
    monkeypatch.setattr(library, 'LIBRARY', '/nonexistent')
    for _ in range(2):
        assert seen(subject) == [('unknown', None, None)] * 2
    assert subject.look()[1] == ['HLML is not at /nonexistent any more']


def test_an_error_at_shutdown_loses_nothing(hlml, local):
    hlml.hlmlShutdown = refuse(HLMLError(UNKNOWN))
    assert seen(intel_gaudi.IntelGaudi(local, None))[0] == ('ok', None, 40)


def test_hlml_is_not_asked_of_the_card_of_a_guest(hlml, local):
    asked = []
    plain = hlml.hlmlDeviceGetHandleByPCIBusID
    hlml.hlmlDeviceGetHandleByPCIBusID = lambda bus: asked.append(bus) or plain(bus)
    first, _ = local.tree.functions()
    (first.path / 'driver').unlink()
    (first.path / 'driver').symlink_to('../../../bus/pci/drivers/vfio-pci')
    seen(intel_gaudi.IntelGaudi(local, None))
    assert asked == ['0000:1a:00.0']


def test_a_recording_has_the_answers_of_hlml(hlml, local, tmp_path, monkeypatch):
    hlml.hlmlDeviceGetTotalECCErrors = on_first(1)
    intel_gaudi.IntelGaudi(local, None).look()
    packed = tmp_path / 'host.tar.gz'
    recording.record(local, packed)
    monkeypatch.setitem(sys.modules, 'pyhlml', None)
    (tmp_path / 'copy').mkdir()
    recording.unpack(packed, tmp_path / 'copy')
    copy = driver.Host('copy', recording.locate(tmp_path / 'copy'))
    assert seen(intel_gaudi.IntelGaudi(copy, None))[0] == ('critical', 'gaudi_ecc', 40)


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
    card = captures.function('0000:19:00.0', '1da3:1020', files={'accel/accel0/status': 'x'})
    return testing.Host(captures.host(tmp_path_factory.mktemp('recorded'), [card]))


ANSWERS = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(['health', 'utilization']), inner)
    ),
)


@hypothesis.given(st.text() | ANSWERS.map(lambda told: json.dumps({'0000:19:00.0': told})))
@hypothesis.example('{"0000:19:00.0": {"health": ["ok", "x"], "utilization": 400}}')
@hypothesis.settings(deadline=None)
def test_any_answer_of_a_recording_leaves_the_card(recorded, text):
    recorded.tools['hlml'] = text
    [card] = intel_gaudi.IntelGaudi(recorded, None).look()[0]
    assert card.health in ('ok', 'warning', 'unknown', 'critical')
    assert card.utilization is None or 0 <= card.utilization <= 100
