# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import socket

import hypothesis
from hypothesis import strategies as st
import pytest

from cyborg_lite.driver import xid

TEXT = '4,812,{time},-;NVRM: Xid (PCI:{card}): {number}, pid=7, name=python, GPU has fallen off'
CARD = '0000:3b:00.0'


def record(number=79, time=5_000_000, card='0000:3b:00'):
    return TEXT.format(number=number, time=time, card=card).encode()


def test_errors_of_each_card():
    records = [
        record(79),
        record(48),
        record(79),
        record(31, card='0000:5E:00'),
        record(74, card='00010000:01:00.0'),
    ]
    found = {CARD: [48, 79], '0000:5e:00.0': [31], '10000:01:00.0': [74]}
    assert xid.parse(records, 10) == found


def test_a_message_of_a_real_card():
    """An H100, on which a program wrote to a wrong address."""
    real = (
        b'4,1024,81781854,-;NVRM: Xid (PCI:0000:00:06): 31, pid=701, name=python3, channel '
        b'0x0000000a, intr 00000000. MMU Fault: ENGINE GRAPHICS GPC1 GPCCLIENT_T1_8 faulted @ '
        b'0x0_00001000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_WRITE\n'
    )
    assert xid.parse([real], 90) == {'0000:00:06.0': [31]}


@pytest.mark.parametrize(
    ('number', 'text', 'counts'),
    [
        (149, 'NETIR_LINK_EVT  Fatal   XC0 i0 Link 09 (0x025525c6 0x00000000)', True),
        (145, 'RLW_REMAP Nonfatal XC1 i0 Link 10 (0x00000004 0x00000040)', False),
        (145, 'RLW_REMAP Nonfatality', True),
        (154, 'GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)', True),
        (154, 'GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)', False),
    ],
)
def test_an_error_that_needs_nothing_does_not_count(number, text, counts):
    """Messages of real drivers: NVIDIA/NVSentinel and leptonai/gpud have them in their tests."""
    message = f'4,812,5000000,-;NVRM: Xid (PCI:0000:3b:00): {number}, {text}\n'
    assert xid.parse([message.encode()], 10) == ({CARD: [number]} if counts else {})


def test_an_error_is_remembered_for_an_hour():
    assert xid.parse([record(time=5_000_000)], 3605) == {CARD: [79]}
    assert xid.parse([record(time=5_000_000)], 3606) == {}


@pytest.mark.parametrize(
    'damaged',
    [
        record().replace(b'4,', b'12,'),  # a process wrote it
        record().replace(b'NVRM', b'x NVRM'),
        record(card='0000:3b'),
        record(card='x'),
        record(number='x'),
        record(number='99999'),
        b'',
        b'\xff' * 100,
    ],
)
def test_other_messages(damaged):
    assert xid.parse([damaged, record(48)], 10) == {CARD: [48]}


@hypothesis.given(st.lists(st.binary(max_size=200)))
@hypothesis.settings(deadline=None)
def test_any_log(records):
    assert xid.parse([*records, record()], 10)[CARD] == [79]


@pytest.fixture
def log(monkeypatch):
    """The other end of a log: each message that is sent is a record."""
    log, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    opened = os.open

    def open_(path, flags, *args, **more):
        if path != pathlib.Path('/dev/kmsg'):
            return opened(path, flags, *args, **more)
        os.set_blocking(log.fileno(), not flags & os.O_NONBLOCK)
        return log.detach()

    monkeypatch.setattr(os, 'open', open_)
    monkeypatch.setattr(xid, 'DEVICE', 0)  # a socket has no number
    monkeypatch.setattr(xid.time, 'clock_gettime', lambda _: 10)
    with end:
        yield end


def test_the_log_is_read_to_its_end_and_not_waited_for(log):
    for number in (79, 48, 95):
        log.send(record(number))
    assert xid.recent(pathlib.Path('/dev/kmsg')) == {CARD: [48, 79, 95]}


def test_overwritten_records_do_not_end_the_log(log, monkeypatch):
    log.send(record(48))
    read, failures = os.read, [BrokenPipeError()]

    def read_(*args):
        if failures:
            raise failures.pop()
        return read(*args)

    monkeypatch.setattr(os, 'read', read_)
    assert xid.recent(pathlib.Path('/dev/kmsg')) == {CARD: [48]}


def test_another_device_of_that_name_is_not_read(log, monkeypatch):
    """A container may have a terminal there."""
    monkeypatch.setattr(xid, 'DEVICE', os.makedev(1, 11))
    log.send(record())
    assert xid.recent(pathlib.Path('/dev/kmsg')) is None


def test_a_log_that_cannot_be_read(log, monkeypatch, tmp_path):
    assert xid.recent(tmp_path / 'kmsg') is None

    def read(*args):
        raise PermissionError

    monkeypatch.setattr(os, 'read', read)
    assert xid.recent(pathlib.Path('/dev/kmsg')) is None


@pytest.mark.parametrize(
    'told', [None, [], 7, {CARD: None}, {CARD: {'79': 1}}, {CARD: ['79', True]}]
)
def test_invalid_answers(told):
    assert xid.of(told, CARD) == []
    assert xid.of({CARD: [79, '48']}, CARD) == [79]
