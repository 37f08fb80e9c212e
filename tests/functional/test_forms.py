# SPDX-License-Identifier: Apache-2.0
"""Cards that change while the service runs: a host's tree, a real driver, and the API."""

import shutil
import uuid

import pytest

from cyborg_lite.cmd import introduction
from cyborg_lite.driver import description
from cyborg_lite.driver import host as hosts
from cyborg_lite.model import Device
from tests import support

QAT = """
functions:
- id: 8086:37c8
  class: 0b4000
  at: {0: [0000:3d:00.0]}
  virtual: {id: 8086:37c9, total: 16, enabled: %s, offset: 8, stride: 1}
"""
TWO_NPUS = """
functions:
- id: 19e5:d802
  class: 120000
  iommu_group: '%s'
  at: {0: [0000:01:00.0]}
- id: 19e5:d802
  class: 120000
  iommu_group: '%s'
  at: {0: [0000:02:00.0]}
"""
CONSOLE = """
functions:
- id: 10de:2684
  class: 030000
  files: {boot_vga: '1'}
  at: {0: [0000:01:00.0]}
- id: 10de:2684
  class: 030000
  files: {boot_vga: '0'}
  at: {0: [0000:02:00.0]}
"""


class Machine:
    """A host whose tree can be changed, with an agent that reports on request."""

    def __init__(self, database_url, root, text):
        self._root = root
        self.lay_out(text)
        self.service = support.Service(
            database_url, [hosts.Host(support.HOST, root)], agent__report_interval=3600
        )
        self.agent = self.service.embedded.agents[0].manager
        self.agent.reported.wait()
        self.api = self.service.api

    def lay_out(self, text):
        if self._root.exists():
            shutil.rmtree(self._root)
        description.write(description.parse(text), self._root)

    def report(self, text):
        self.lay_out(text)
        self.agent.report()

    def ask(self, resource, count=1):
        """The uuids of requests for accelerators of a class."""
        name = f'p{uuid.uuid4()}'
        self.service.profile(name, **{resource: count})
        return self.service.arqs(name)

    def part(self, address='0000:3d:00.0'):
        parts = self.api.get('/v2/deployables').json['deployables']
        return next(each for each in parts if each['name'].endswith(address))

    def bind(self, resource, address='0000:3d:00.0', count=1, **more):
        arqs = self.ask(resource, count)
        return arqs, self.api.bind(*arqs, provider=self.part(address)['rp_uuid'], **more)


@pytest.fixture
def machine(database_url, tmp_path):
    made = []

    def make(text):
        made.append(Machine(database_url, tmp_path / 'root', text))
        return made[0]

    yield make
    made[0].service.stop()


@pytest.mark.parametrize(('before', 'after'), [(0, 4), (4, 0)])
def test_whole_card_and_its_virtual_functions(machine, before, after):
    qat = machine(QAT % before)
    held, answer = qat.bind('CUSTOM_QAT')
    assert answer.status_int == 202
    qat.report(QAT % after)
    for _ in range(3):
        _, answer = qat.bind('CUSTOM_QAT')
        assert answer.status_int == 409
        assert 'held in another form' in support.fault(answer)
        qat.report(QAT % after)
    qat.api.unbind(*held)
    qat.report(QAT % after)
    for _ in range(after or 1):
        assert qat.bind('CUSTOM_QAT')[1].status_int == 202
    assert qat.bind('CUSTOM_QAT')[1].status_int == 404


def table(session, *names):
    """The free counts and the reasons in the table of up."""
    return [tuple(row[6:8]) for row in introduction._rows(session, names or [support.HOST])]


def test_table_of_up_counts_what_is_free(machine):
    qat = machine(QAT % 0)
    qat.bind('CUSTOM_QAT')
    qat.report(QAT % 4)
    with qat.service.database.reader() as session:
        assert table(session) == [('0/5', 'excluded, held, lost')]
        assert introduction._example(session, [support.HOST]) is None
    [row] = qat.service.rows(Device)
    qat.api.post(f'/v2/devices/{row.uuid}/disable')
    with qat.service.database.reader() as session:
        assert table(session) == [('0/5', 'disabled, held, lost')]
        [row] = introduction._rows(session, [support.HOST])
        assert 'its device is maintaining' in row[-1]
        assert table(session, 'another') == [('0/5', 'not of this run')]


def test_virtual_functions_go_to_several(machine):
    qat = machine(QAT % 4)
    assert [qat.bind('CUSTOM_QAT')[1].status_int for _ in range(4)] == [202] * 4


def test_devices_of_one_iommu_group(machine):
    npus = machine(TWO_NPUS % ('7', '7'))
    assert npus.bind('CUSTOM_NPU', '01:00.0')[1].status_int == 202
    _, answer = npus.bind('CUSTOM_NPU', '02:00.0')
    assert answer.status_int == 409
    assert 'IOMMU group 7' in support.fault(answer)
    npus.report(TWO_NPUS % ('7', '8'))
    assert npus.bind('CUSTOM_NPU', '02:00.0')[1].status_int == 202


def test_card_of_the_console(machine):
    gpus = machine(CONSOLE)
    _, answer = gpus.bind('PGPU', '01:00.0')
    assert answer.status_int == 409
    assert 'console' in support.fault(answer)
    assert gpus.bind('PGPU', '02:00.0')[1].status_int == 202


def test_another_card_in_the_slot_of_a_held_one(machine):
    npu = TWO_NPUS % ('1', '2')
    host = machine(npu)
    [arq], answer = host.bind('CUSTOM_NPU', '01:00.0')
    assert answer.status_int == 202
    before = host.api.get(f'/v2/accelerator_requests/{arq}').json
    gpu = CONSOLE.replace("boot_vga: '1'", "boot_vga: '0'").replace('0000:02', '0000:05')
    for _ in range(4):
        host.report(gpu)
    after = host.api.get(f'/v2/accelerator_requests/{arq}').json
    assert {**after, 'updated_at': None} == {**before, 'updated_at': None}
    devices = [row for row in host.service.rows(Device) if row.address == '0000:01:00.0']
    assert [row.type for row in devices] == ['AICHIP', 'GPU']
    parts = host.api.get('/v2/deployables').json['deployables']
    [new] = [part for part in parts if part['name'].endswith('01:00.0_2684')]
    [request] = host.ask('PGPU')
    assert host.api.bind(request, provider=new['rp_uuid']).status_int == 202


def test_npus_that_change_slots(machine, caplog):
    """The disabled card stays disabled, and the held accelerator moves with its card."""
    atlas = machine(hosts.shipped()['atlas-800t-a2'])

    def tell(numbers):
        for npu, serial in enumerate(numbers):
            board = atlas.agent.host.root / f'tools/npu-smi/info_-t_board_-i_{npu}.txt'
            known = board.read_text() if board.exists() else f'NPU ID : {npu}\n'
            lines = [line for line in known.splitlines() if 'Serial' not in line]
            board.write_text('\n'.join([*lines, f'Serial Number : 033EFS10N5{serial:06}', '']))
        atlas.agent.report()
        return {
            device.address: (device.uuid, device.status) for device in atlas.service.rows(Device)
        }

    before = tell(range(8))
    numbers = {d.address: d.vendor_board['npu_id'] for d in atlas.service.rows(Device)}
    slots = sorted(before, key=numbers.__getitem__)
    atlas.api.post(f'/v2/devices/{before[slots[0]][0]}/disable')
    [arq], answer = atlas.bind('CUSTOM_NPU', slots[1])
    assert answer.status_int == 202
    after = tell([1, 0, *range(2, 8)])
    assert after[slots[1]] == (before[slots[0]][0], 'maintaining')
    assert after[slots[0]] == (before[slots[1]][0], 'enabled')
    assert f'is at {slots[0]} now: it was at {slots[1]}' in caplog.text
    assert [after[slot] for slot in slots[2:]] == [before[slot] for slot in slots[2:]]
    handle = atlas.api.get(f'/v2/accelerator_requests/{arq}').json['attach_handle_info']
    assert f'{handle["domain"]}:{handle["bus"]}:{handle["device"]}.0' == slots[0]
    assert atlas.bind('CUSTOM_NPU', slots[0])[1].status_int == 409
