# SPDX-License-Identifier: Apache-2.0
"""A recording does not identify a card, a machine or a user."""

from __future__ import annotations

import json
import re

import pytest

from cyborg_lite.driver import masking
from cyborg_lite.drivers.tools import npu_smi
from tests.unit.drivers import captures

SERIAL = '2102312NVF10L8000123'
UUID = 'GPU-7f1c2a9e-55b0-4d3c-9a11-0c8de21f4b77'


def mask(text, *more):
    outputs = {('tool', 'info'): text, **{('tool', str(n)): t for n, t in enumerate(more)}}
    return masking.mask(outputs, {})[0]


def masked(text):
    return mask(text)['tool', 'info']


def shape(text):
    """The text with digits and letters replaced by their kind."""
    return re.sub('[a-z]', 'a', re.sub('[A-Z]', 'A', re.sub('[0-9]', '0', text)))


@pytest.mark.parametrize(
    ('text', 'secret'),
    [
        (f'\tSerial Number                  : {SERIAL}\n', SERIAL),
        (f'    Chassis Serial Number      : {SERIAL}  \n', SERIAL),
        (f'vendor serial number : {SERIAL}', SERIAL),
        (f'SN: {SERIAL}', SERIAL),
        ('VDie ID     : 42C711D4 20B03704 4A10C8D4 14CC040A D2102003', '4A10C8D4'),
        ('NDie ID     : 27216594 20401010 4E10C8D4 14CC040A A4102003', 'A4102003'),
        ('    GPU PDI     : 0x737bb8d09327f7d9', '737bb8d09327f7d9'),
        (f'| Serial Number : {SERIAL}  | OK      |', SERIAL),
        (f'GPU 0: NVIDIA H200 (UUID: {UUID})\n', UUID),
        (f'    GPU UUID        : {UUID}', UUID),
        (f'  MIG 1g.18gb  Device  3: (UUID: {UUID.replace("GPU", "MIG")})', UUID[4:]),
        (f'no name beside {UUID[4:].upper()}!', UUID[4:].upper()),
        (f'{{"serial_number": "{SERIAL}", "name": "Ascend 910B3"}}', SERIAL),
        (f'<gpu><serial>{SERIAL}</serial><name>H200</name></gpu>', SERIAL),
        (f'<uuid>{UUID}</uuid>', UUID),
        (f'index, serial, name\n0, {SERIAL}, NVIDIA H200\n', SERIAL),
        (f'| NPU  | Serial Number        | Name  |\n+==+\n| 0    | {SERIAL} | 910B3 |', SERIAL),
        (f'NPU ID   Serial Number         Name\n0        {SERIAL}  910B3', SERIAL),
    ],
)
def test_a_secret_is_replaced_by_the_same_shape(text, secret):
    answer = masked(text)
    assert secret not in answer
    assert shape(answer).replace('a', '0') == shape(text).replace('a', '0')
    # All except the value stays, in the same columns.
    for word in ('NVIDIA H200', 'Ascend 910B3', '910B3', 'MIG 1g.18gb', '<name>H200<', 'OK'):
        assert (word in answer) == (word in text)
    assert masked(text) != text


@pytest.mark.parametrize('none', ['NA', 'N/A', '-', '', '0000000000000', '[Not Supported]', 'None'])
def test_a_value_that_is_no_serial_number_stays(none):
    text = f'\tSerial Number                  : {none}\n\tBoard ID : 0x02\n'
    assert masked(text) == text


@pytest.mark.parametrize(
    'text',
    [
        '\tPCIe Bus Info                  : 0000:61:00.0\n\tBoard ID   : 0x3c\n',
        '30:04.0 Serial Attached SCSI controller: Huawei Technologies (rev 30)\n',
        '\tProcess node                   : 7nm\n\tChip Name : 910A\n',
        'Snapshots: 12',
    ],
)
def test_a_value_that_is_not_secret_stays(text):
    assert masked(text) == text


def test_cards_stay_apart_and_are_the_same_wherever_they_are_named():
    other = SERIAL.replace('123', '124')
    board = 'Serial Number : {}\nHealth : OK\n'
    outputs = {
        ('npu-smi', 'info', '-t', 'board', '-i', '0'): board.format(SERIAL),
        ('npu-smi', 'info', '-t', 'board', '-i', '1'): board.format(other),
        ('npu-smi', 'list'): f'0 {SERIAL}\n1 {other}\n',
        ('smi', '-L'): f'GPU 0: H200 (UUID: {UUID})\n',
        ('smi', '-q', '-i', UUID): f'GPU UUID : {UUID}\nBare: {UUID[4:]}\n',
    }
    answer, *_ = masking.mask(outputs, {})
    assert list(answer)[:4] == list(outputs)[:4]
    first, second, listed, gpus, gpu = answer.values()
    serials = [text.split(' : ')[1].split('\n')[0] for text in (first, second)]
    assert len({*serials, SERIAL, other}) == 4
    assert listed == f'0 {serials[0]}\n1 {serials[1]}\n'
    uuid = gpus.rpartition(': ')[2].rstrip(')\n')
    assert gpu == f'GPU UUID : {uuid}\nBare: {uuid[4:]}\n'
    assert list(answer)[4] == ('smi', '-q', '-i', uuid)
    assert UUID[4:] not in str(answer)


def test_each_recording_has_other_numbers():
    """The replaced serial number cannot be found by trials."""
    assert masked(f'Serial Number : {SERIAL}') != masked(f'Serial Number : {SERIAL}')


PROCESSES = """\
| npu-smi 23.0.rc3          Version: 23.0.rc2.3     |
+---------------+---------------+-------------------+
| NPU   Name    | Health        | Power(W)          |
| Chip          | Bus-Id        | HBM-Usage(MB)     |
+===============+===============+===================+
| 0     910B3   | OK            | 73.4              |
| 0             | 0000:C1:00.0  | 30710/ 32768      |
+===============+===============+===================+
+---------------+---------------+-------------------+
| NPU     Chip  | Process id    | Process name      |
+===============+===============+===================+
| 0       0     | 139667        | python-of-alice   |
+===============+===============+===================+
"""
QUERY = """\
GPU 00000000:04:00.0
    Processes
        GPU instance ID                   : 2
        Process ID                        : 139667
            Name                          : /home/python-of-alice
    Capabilities
        EGM                               : disabled
"""
TABLE = """\
| GPU  Name                 |
|   0  NVIDIA H200          |
+---------------------------+
| Processes:                |
|  GPU  PID   Process name  |
|===========================|
|    0  139667  python-of-alice |
+---------------------------+
"""
XML = """\
<gpu><processes>
  <process_info><pid>139667</pid><process_name>python-of-alice</process_name></process_info>
</processes><uuid>N/A</uuid></gpu>
"""
#: As nvml.ask() answers.
NVML = json.dumps(
    {
        '0000:04:00.0': {
            'pids': [139667, 7],
            'pid_memory': {'139667': 9, '7': 4711},
            'note': 'after',
        }
    },
    indent=1,
)
CSV = 'pid, process_name, used_gpu_memory [MiB]\n139667, python-of-alice, 1 MiB\n\nafter\n'


@pytest.mark.parametrize('text', [PROCESSES, QUERY, TABLE, XML, NVML, CSV])
def test_processes_are_left_out(text):
    answer = masked(text)
    assert not any(word in answer for word in ('139667', '4711', 'alice'))
    kept = ('C1:00.0', 'EGM', 'NVIDIA H200', '<uuid>N/A', 'after')
    assert [word in answer for word in kept] == [word in text for word in kept]
    assert npu_smi.parse_info(answer) == npu_smi.parse_info(text)


@pytest.mark.parametrize(
    'name',
    [
        '310-atlas800-3000-20.2.0.info.txt',
        '310P3-duo-4cards-25.5.1.txt',
        '310P3-single-25.3.rc1.txt',
        '910-8card-processes-23.0.rc3.txt',
        '910-health-Warning-23.0.5.txt',
        '910A-atlas800-9010-22.0.3.1.info.txt',
        'A3-910C-npu4-two-chips-25.5.1.txt',
    ],
)
def test_tables_of_real_cards_say_the_same(name):
    text = captures.text(f'ascend/{name}')
    answer = masked(text)
    assert npu_smi.parse_info(answer) == npu_smi.parse_info(text) != []
    assert 'python' not in answer


@pytest.mark.parametrize(
    'text', ['', '\n', '|||', ', ,', 'Serial:', '"serial": "', '<serial>', 'x' * 9]
)
def test_any_text_has_an_answer(text):
    assert masked(text) == text


@pytest.mark.parametrize(
    'text', ['<processes>', 'a</processes>b', '<processes>a<processes>b</processes>c</processes>d']
)
def test_tags_that_do_not_fit(text):
    answer = masked(text)
    assert '<' not in answer and 'c' not in answer
    assert ('d' in answer) == ('d' in text)


def test_files_are_masked_by_their_names_and_their_keys():
    node = 'gpu_id 4711\nunique_id 5847760019078012339\ndevice_id 29711\n'
    files = {
        'sys/devices/pci0000:00/0000:03:00.0/unique_id': '5127a6b8c9d0e1f2',
        'sys/class/kfd/kfd/topology/nodes/1/properties': node,
        'sys/class/accel/accel0/status': 'operational',
        f'sys/class/cards/{SERIAL}/name': SERIAL,
        'sys/class/cards/0/serial_number': SERIAL,
    }
    card = 'a1b2c3d4-0000-4000-8000-1234567890ab'
    names = [f'sys/class/cards/{SERIAL}', f'sys/class/mdev/{card}', 'sys/class/accel/accel0']
    _, found, shown = masking.mask({}, files, names)
    assert list(shown) == names
    assert shown[names[0]] != names[0] and card not in shown[names[1]]
    assert shown[names[2]] == names[2]
    unique, properties, status, name, serial = found.values()
    assert unique != '5127a6b8c9d0e1f2'
    assert re.fullmatch('[0-9a-f]{16}', unique)
    assert '5847760019078012339' not in properties
    assert 'gpu_id 4711\n' in properties and 'device_id 29711\n' in properties
    assert status == 'operational'
    assert name == serial != SERIAL
    assert not any(SERIAL in path for path in found)
