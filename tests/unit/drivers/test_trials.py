# SPDX-License-Identifier: Apache-2.0
"""What each shipped driver tries before a card that was critical counts as good again."""

from __future__ import annotations

import json
import pathlib

import hypothesis
from hypothesis import strategies as st
from oslo_config import cfg
import pytest

from cyborg_lite import driver
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import pci
from cyborg_lite.driver import testing
from cyborg_lite.drivers import amd_gpu
from cyborg_lite.drivers import huawei_ascend
from cyborg_lite.drivers import intel_fpga
from cyborg_lite.drivers import intel_gaudi
from cyborg_lite.drivers import intel_gpu
from cyborg_lite.drivers import intel_qat
from cyborg_lite.drivers import nvme_ssd
from cyborg_lite.drivers import xilinx_fpga
from cyborg_lite.drivers.tools import npu_smi
from tests.unit.drivers import captures

CARD = '0000:3b:00.0'
#: The link of a card that is well by it.
LINK = {'current_link_width': '16', 'max_link_width': '16'}
FME = 'fpga_region/region0/dfl-fme.0'
#: Each family whose kernel driver tells the health: an id, a class, the kernel driver, its file,
#: and the content of the file if the card is critical, and if it is well.
FAMILIES = [
    (amd_gpu.AmdGpu, '1002:74a1', '120000', 'amdgpu', 'ras/umc_err_count', 'ue: 1', 'ue: 0'),
    (intel_fpga.IntelFpga, '8086:bcce', '120000', 'dfl-pci', f'{FME}/errors/catfatal_errors',
     '0x8', '0x0'),
    (intel_gaudi.IntelGaudi, '1da3:1020', '120000', 'habanalabs', 'accel/accel0/status',
     'Disabled', 'Operational'),
    (intel_gpu.IntelGpu, '8086:e211', '030000', 'xe', 'survivability_mode', 'x', None),
    (intel_qat.IntelQat, '8086:4940', '0b4000', '4xxx', 'qat_ras/errors_fatal', '1', '0'),
    (nvme_ssd.NvmeSsd, '144d:a80a', '010802', 'nvme', 'nvme/nvme0/state', 'dead', 'live'),
    (xilinx_fpga.XilinxFpga, '10ee:5000', '120000', 'xclmgmt', 'firewall.m.1/status', '4', '0'),
]  # fmt: skip
NAMES = [kind.name for kind, *_ in FAMILIES]


class Case:
    """A card of one family: a test sets what its kernel driver tells of it."""

    def __init__(self, tmp_path, kind, ids, pci_class, bound, place, ill, well):
        function = captures.function(CARD, ids, pci_class, driver=bound, files=LINK | {place: ill})
        self.host = testing.Host(captures.host(tmp_path, [function]))
        self.subject = kind(self.host, cfg.ConfigOpts())
        self.place, self.well = place, well
        self.path = self.host.root / 'sys/bus/pci/devices' / CARD

    def seen(self) -> tuple[str, str | None]:
        [card] = self.subject.look()[0]
        return card.health, card.health_reason

    def tell(self, text: str | None) -> None:
        if text is None:
            (self.path / self.place).unlink()
        else:
            (self.path / self.place).write_text(text)

    def bind(self, name: str | None) -> None:
        (self.path / 'driver').unlink(missing_ok=True)
        if name:
            (self.path / 'driver').symlink_to(f'../../../bus/pci/drivers/{name}')


@pytest.fixture(params=FAMILIES, ids=NAMES)
def case(tmp_path, request):
    case = Case(tmp_path, *request.param)
    assert case.seen()[0] == 'critical'
    return case


def test_a_card_that_its_kernel_driver_calls_well_comes_back(case):
    case.tell(case.well)
    assert case.seen() == ('ok', None)


@pytest.mark.parametrize('bound', [None, 'vfio-pci'])
def test_a_card_whose_kernel_driver_is_gone_does_not_come_back(case, bound):
    """A good PCIe link alone ended the fault before."""
    (case.path / case.place).unlink()
    case.bind(bound)
    # The health of the SSD of a guest is unknown, which is no good sample, either.
    unknown = bound and isinstance(case.subject, nvme_ssd.NvmeSsd)
    assert case.seen() == (('unknown', None) if unknown else ('critical', 'pci_no_driver'))


def test_a_card_that_has_left_its_bus_does_not_come_back(case):
    case.tell(case.well)
    (case.path / 'config').write_bytes(b'\xff' * 64)
    assert case.seen() == ('critical', 'pci_no_answer')
    (case.path / 'config').write_bytes(b'\x02\x10\xa1\x74')
    assert case.seen() == ('ok', None)


class Quiet(pci.PciDriver):
    """A driver of another package that tries nothing itself."""

    name, type, resource_class = 'quiet', 'GPU', 'PGPU'
    models = {('abcd', '0001'): 'Quiet'}

    def health(self, card):
        return driver.Health(*(card.read('quiet') or 'unknown').split())


@pytest.mark.parametrize(
    ('bound', 'config', 'expected'),
    [
        (None, b'\xff' * 4, ('critical', 'pci_no_answer')),
        # One that is kept for guests may sleep.
        ('vfio-pci', b'\xff' * 4, ('ok', None)),
        (None, b'\xff' * 3, ('ok', None)),
        (None, b'', ('ok', None)),
    ],
)
def test_each_card_has_to_answer_on_its_bus(tmp_path, bound, config, expected):
    case = Case(tmp_path, Quiet, 'abcd:0001', '120000', bound, 'quiet', 'critical x', 'ok')
    assert case.seen() == ('critical', 'x')
    (case.path / 'config').write_bytes(config)
    case.tell(case.well)
    assert case.seen() == expected


@pytest.mark.parametrize('text', ['Query currently inaccessible', '', None])
def test_an_amd_gpu_that_tells_no_errors_does_not_come_back(tmp_path, text):
    case = Case(tmp_path, *FAMILIES[0])
    [card] = case.subject.discover()
    case.tell(text)
    assert case.subject.validate(card) == 'amd_no_answer'


@pytest.mark.parametrize('text', ['In reset', '', None])
def test_a_gaudi_that_tells_no_status_does_not_come_back(tmp_path, text):
    case = Case(tmp_path, *FAMILIES[2])
    [card] = case.subject.discover()
    case.tell(text)
    assert case.subject.validate(card) == 'gaudi_no_answer'


@pytest.mark.parametrize(
    ('told', 'expected'),
    [
        ({'critical_warning': 0}, ('ok', None)),
        ({'critical_warning': 1}, ('critical', 'nvme_spare')),
        ({'critical_warning': 2}, ('critical', 'nvme_temperature')),
        ({'critical_warning': 8}, ('critical', 'nvme_read_only')),
        # It is unknown, so no trial.
        ('rubbish', ('unknown', None)),
        (testing.Fault.HANGS, ('unknown', 'no_answer_in_5_s')),
        (testing.Fault.MISSING, ('ok', None)),
    ],
)
def test_an_ssd_with_any_critical_warning_does_not_come_back(tmp_path, told, expected):
    case = Case(tmp_path, *FAMILIES[5])
    assert case.seen() == ('critical', 'nvme_dead')
    case.tell('live')
    case.host.tools['nvme'] = json.dumps(told) if isinstance(told, dict) else told
    assert case.seen() == expected


@pytest.mark.parametrize('fault', [*testing.Fault])
def test_an_ssd_is_asked_anew(tmp_path, fault):
    """The health of this scan may be that of the SMART data of an earlier one."""
    case = Case(tmp_path, *FAMILIES[5])
    case.tell('live')
    case.host.tools['nvme'] = json.dumps({'critical_warning': 0})
    [card] = case.subject.discover()
    case.host.tools['nvme'] = fault
    expected = None if fault is testing.Fault.MISSING else 'nvme_no_answer'
    assert case.subject.validate(card) == expected


QUESTION = 'npu-smi info -t health -i 0 -c 0'
ASCEND = '0000:c1:00.0'


@pytest.fixture
def atlas(tmp_path):
    """The shipped server, and the first of its eight cards; a tool that says OK of each chip."""
    host = testing.Host(hosts.find('atlas-800t-a2', tmp_path))
    subject = huawei_ascend.HuaweiAscend(host, None)
    [card] = [card for card in subject.discover() if card.address == ASCEND]
    host.tools[QUESTION] = 'Health Status : OK\nError Code : NA\n'
    host.runs.clear()
    return host, subject, card


def nodes(host: driver.Host, *numbers: int) -> None:
    (host.root / 'dev').mkdir(exist_ok=True)
    for number in numbers:
        (host.root / f'dev/davinci{number}').touch()


def test_an_npu_whose_chips_are_ok_comes_back(atlas):
    host, subject, card = atlas
    assert subject.validate(card) is None
    # It only reads, and asks of this chip alone.
    assert host.runs == [QUESTION]


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('Health Status : Warning', 'ascend_warning'),
        ('Health Status : Alarm', 'ascend_alarm'),
        ('Health Status : Critical', 'ascend_critical'),
        ('Health Status : UNKNOWN', 'ascend_no_answer'),
        ('Health Status : Fine\u202e' + 'x' * 5000, 'ascend_no_answer'),
        ('Health Status OK', 'ascend_no_answer'),
        *((fault, 'ascend_no_answer') for fault in testing.Fault),
    ],
)
def test_an_npu_of_which_npu_smi_does_not_say_ok_does_not_come_back(atlas, text, reason):
    host, subject, card = atlas
    host.tools[QUESTION] = text
    assert subject.validate(card) == reason


def test_an_npu_without_its_node_does_not_come_back(atlas):
    host, subject, card = atlas
    (host.root / 'dev/davinci0').unlink()
    assert subject.validate(card) == 'ascend_no_node'
    nodes(host, 0)
    assert subject.validate(card) is None


def test_each_chip_of_a_card_is_asked(tmp_path):
    host = testing.Host(hosts.find('atlas-300i-duo', tmp_path))
    subject = huawei_ascend.HuaweiAscend(host, None)
    card = subject.discover()[0]
    number = card.vendor_board['npu_id']
    told = {f'npu-smi info -t health -i {number} -c {n}': 'Health Status : OK' for n in (0, 1)}
    host.tools.update(told)
    assert subject.validate(card) is None
    host.tools[[*told][1]] = 'Health Status : Alarm'
    assert subject.validate(card) == 'ascend_alarm'


def test_an_npu_that_npu_smi_has_never_told_of_does_not_come_back(tmp_path):
    function = captures.function(CARD, '19e5:d802', driver='devdrv_device_driver')
    subject = huawei_ascend.HuaweiAscend(captures.host(tmp_path, [function]), None)
    [card] = subject.discover()
    assert subject.validate(card) == 'ascend_no_answer'


def test_an_npu_that_is_no_pci_function_has_no_trial(tmp_path):
    host = captures.host(tmp_path, [])
    nodes(host, 0)
    subject = huawei_ascend.HuaweiAscend(host, None)
    [card] = subject.discover()
    assert card.address == 'davinci0'
    assert subject.validate(card) is None


@hypothesis.given(st.text())
def test_any_text_is_the_health_of_a_chip(text):
    assert npu_smi.parse_health(text).level in ('ok', 'unknown', 'warning', 'critical')


def test_no_trial_writes(tmp_path):
    """A tenant may hold the card."""
    case = Case(tmp_path, *FAMILIES[5])
    [card] = case.subject.discover()

    def files() -> dict[pathlib.Path, bytes]:
        return {path: path.read_bytes() for path in case.path.rglob('*') if path.is_file()}

    before = files()
    case.subject.validate(card)
    assert files() == before
