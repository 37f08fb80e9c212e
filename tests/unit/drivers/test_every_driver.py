# SPDX-License-Identifier: Apache-2.0
"""One contract, every driver that we ship, every host that we ship."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pathlib
import pkgutil
import shutil
import subprocess
import sys

from oslo_config import cfg
import pytest

from cyborg_lite import contract
from cyborg_lite import driver
from cyborg_lite import drivers
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import recording
from cyborg_lite.driver import testing
from tests.unit.drivers import captures


def shipped() -> list[type[driver.Driver]]:
    found = []
    for name in sorted(m.name for m in pkgutil.iter_modules(drivers.__path__)):
        module = importlib.import_module(f'cyborg_lite.drivers.{name}')
        for title, kind in inspect.getmembers(module, inspect.isclass):
            own = kind.__module__ == module.__name__ and not title.startswith('_')
            if own and issubclass(kind, driver.Driver):
                found.append(kind)
    return found


DRIVERS = shipped()


CONF = cfg.ConfigOpts()
CONF.register_opts([cfg.MultiStrOpt('device_spec', default=[])], 'pci')
CONF.set_override('device_spec', ['{"vendor_id": "8086", "product_id": "0b25"}'], 'pci')


@pytest.fixture
def conf():
    return CONF


class TestContract(testing.Contract):
    """Without the fake driver: it finds a card that no host has."""

    drivers = [kind for kind in DRIVERS if kind.name != 'fake']
    hosts = [*sorted(hosts.shipped()), '../../fixtures/*.yaml']
    conf = CONF


def test_names_are_those_of_the_files():
    names = [kind.name for kind in DRIVERS]
    assert names == [kind.__module__.rpartition('.')[2] for kind in DRIVERS]
    assert {'amd_gpu', 'fake', 'huawei_ascend', 'intel_gaudi', 'intel_gpu'} <= {*names}
    assert {'inspur_fpga', 'intel_fpga', 'intel_qat', 'nic', 'nvidia_gpu'} <= {*names}
    assert {'nvme_ssd', 'pci', 'spdk', 'xilinx_fpga'} <= {*names}


FOUND = {
    'atlas-300i-duo': [('huawei_ascend', 'Ascend 310P3', 'CUSTOM_NPU', 1)] * 4,
    'atlas-800t-a2': [('huawei_ascend', 'Ascend 910B3', 'CUSTOM_NPU', 1)] * 8,
    'hgx-8gpu': [('nvidia_gpu', 'NVIDIA H100 80GB HBM3', 'PGPU', 1)] * 8,
    'mixed-alveo-qat': [
        ('intel_qat', 'C62x', 'CUSTOM_QAT', 16),
        ('pci', 'PCI 8086:0b25', 'CUSTOM_PCI', 1),
        ('xilinx_fpga', 'Alveo U250', 'FPGA', 1),
    ],
}


def devices(host: driver.Host, conf: cfg.ConfigOpts) -> list[driver.Device]:
    """The devices of all drivers except the fake one, like in an agent, without duplicates."""
    found, seen = [], set()
    for kind in DRIVERS:
        if kind.name != 'fake':
            good, complaints = contract.check(kind(host, conf).discover(), seen)
            assert complaints == []
            found += good
    return found


def seen_of(device: driver.Device) -> tuple[str, str, str, int]:
    [part] = device.deployables
    return part.driver_name, device.model, part.resource_class, len(part.attach_handles)


@pytest.mark.parametrize('name', sorted(hosts.shipped()))
def test_what_a_host_has(tmp_path, conf, name):
    assert [seen_of(d) for d in devices(hosts.find(name, tmp_path), conf)] == FOUND[name]


def test_this_machine_breaks_no_driver(conf):
    """With its own sysfs, and the installed vendors' tools."""
    for kind in DRIVERS:
        testing.discover(kind, driver.Host.local('here'), conf)


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """The files that are opened, while a host has 500 bridges."""
    functions = tmp_path / 'sys/bus/pci/devices'
    functions.mkdir(parents=True)
    for number in range(500):
        bus, rest = divmod(number, 256)
        function = functions / f'0000:{bus:02x}:{rest >> 3:02x}.{rest & 7}'
        function.mkdir()
        for name, text in {'vendor': '0x19e5', 'device': '0xa120', 'class': '0x060400'}.items():
            (function / name).write_text(text)
    opened = []
    open_ = os.open
    monkeypatch.setattr(os, 'open', lambda *args: opened.append(args) or open_(*args))
    return opened


def test_five_hundred_functions_are_read_once_or_twice_each(tmp_path, conf, opened):
    for kind in DRIVERS:
        opened.clear()
        found = kind(driver.Host('many', tmp_path), conf).discover()
        assert len(found) == (kind.name == 'fake')
        # Two ids, the class, and for the pci driver the number of enabled virtual functions.
        assert len(opened) <= 4 * 500, kind.name


def test_all_drivers_of_a_scan_read_each_function_once(tmp_path, conf, opened):
    """With 10,000 functions each driver alone takes more than a second."""
    host = driver.Host('many', tmp_path)
    host.tree.begin()
    for kind in DRIVERS:
        kind(host, conf).discover()
    # And one of them the number of enabled virtual functions.
    assert len(opened) <= 4.1 * 500


def hide_the_bus(host: driver.Host) -> None:
    """As where only classes of devices are shown: those in the directories of the functions."""
    for function in host.tree.functions():
        for kind in function.path.iterdir():
            for device in kind.iterdir() if kind.is_dir() else ():
                home = host.root / 'sys/class' / kind.name
                home.mkdir(parents=True, exist_ok=True)
                (device / 'device').symlink_to(f'../../../{function.bdf}')
                (home / device.name).symlink_to(os.path.relpath(device, home))
    shutil.rmtree(host.root / 'sys/bus')


@pytest.mark.parametrize(
    ('kind', 'ids', 'pci_class', 'device'),
    [
        ('amd_gpu', '1002:74a1', '120000', 'drm/renderD12'),
        ('intel_fpga', '8086:bcce', '120000', 'fpga_region/region'),
        ('intel_gaudi', '1da3:1060', '120000', 'accel/accel'),
        ('intel_gaudi', '1da3:1020', '120000', 'habanalabs/hl'),
        ('intel_gpu', '8086:0bd5', '038000', 'drm/card'),
        ('nic', '15b3:a2dc', '020000', 'net/ens3f'),
        ('nvidia_gpu', '10de:2330', '030200', 'drm/renderD12'),
        ('nvme_ssd', '144d:a80a', '010802', 'nvme/nvme'),
    ],
)
def test_a_host_that_hides_the_bus(tmp_path, conf, kind, ids, pci_class, device):
    functions = [
        captures.function(bdf, ids, pci_class, files={f'{device}{number}/dev': '261:3'})
        for number, bdf in enumerate(('0000:3b:00.0', '0000:5e:00.0'))
    ]
    host = captures.host(tmp_path, functions)
    before = [each.facts() for each in devices(host, conf)]
    assert [each['deployables'][0]['driver_name'] for each in before] == [kind] * 2
    hide_the_bus(host)
    assert [each.facts() for each in devices(host, conf)] == before
    recording.record(host, tmp_path / 'copy.tar.gz', with_serials=True)
    copy = hosts.find(str(tmp_path / 'copy.tar.gz'), tmp_path)
    assert [each.facts() for each in devices(copy, conf)] == before


def test_an_alveo_card_is_not_found_by_its_function_for_users_alone(tmp_path, conf):
    """So the guide says: a class may have that function, and none has the one that manages."""
    pair = [
        captures.function('0000:3b:00.0', '10ee:5000'),
        captures.function('0000:3b:00.1', '10ee:5001', files={'drm/renderD128/dev': '226:128'}),
    ]
    host = captures.host(tmp_path, pair)
    assert len(devices(host, conf)) == 1
    hide_the_bus(host)
    assert [function.bdf for function in host.tree.functions()] == ['0000:3b:00.1']
    assert devices(host, conf) == []


def test_devices_of_classes_that_are_no_functions_are_no_cards(tmp_path, conf):
    """A platform's device, one that is gone, one without ids, one elsewhere; and nodes of KFD."""
    root = tmp_path / 'host'
    for number, target in enumerate(
        ('sys/devices/platform/gpu', 'sys/devices/0000:3b:00.0/gone', 'sys/devices/0000:5e:00.0')
    ):
        device = root / f'sys/devices/virtual/accel{number}'
        device.mkdir(parents=True)
        (device / 'device').symlink_to(root / target)
        for name in ('accel', 'drm', 'nvme'):
            home = root / 'sys/class' / name
            home.mkdir(parents=True, exist_ok=True)
            (home / device.name).symlink_to(device)
    for place in ('platform/gpu', '0000:5e:00.0'):
        (root / 'sys/devices' / place).mkdir(parents=True)
    elsewhere = tmp_path / '0000:af:00.0'
    elsewhere.mkdir()
    for name, text in {'vendor': '0x1da3', 'device': '0x1020', 'class': '0x120000'}.items():
        (elsewhere / name).write_text(text)
    (root / 'sys/class/habanalabs/hl0').mkdir(parents=True)
    (root / 'sys/class/habanalabs/hl0/device').symlink_to(elsewhere)
    node = root / captures.NODES / '1'
    node.mkdir(parents=True)
    (node / 'properties').write_text('simd_count 1216\nvendor_id 4098\ndevice_id 29857\n')
    host = driver.Host('host', root)
    assert [function.bdf for function in host.tree.functions()] == ['0000:5e:00.0']
    assert devices(host, conf) == []


#: Scans a host in a process of its own, and prints what that took.
SCAN = """\
import collections, json, pathlib, re, sys, time
from tests.unit.drivers import test_every_driver as tests
calls, status = collections.Counter(), pathlib.Path('/proc/self/status')
host = tests.driver.Host('many', pathlib.Path(sys.argv[1]))
# Opening a file is one event with its path, and another one with its descriptor.
sys.addaudithook(lambda event, args: calls.update(
    [event] if event in ('open', 'os.scandir') and not isinstance(args[0], int) else []
))
begun = time.process_time()
host.tree.begin()
found = collections.Counter(d.deployables[0].driver_name for d in tests.devices(host, tests.CONF))
print(json.dumps({
    'found': found,
    'opened': calls['open'],
    'listed': calls['os.scandir'],
    'seconds': time.process_time() - begun,
    # The maximum of getrusage() is that of the parent, too.
    'mib': int(re.search('VmHWM:[^0-9]*([0-9]+)', status.read_text())[1]) >> 10,
}))
"""


class Many:
    """A host of many functions, written faster than from a description."""

    def __init__(self, root: pathlib.Path) -> None:
        self._devices, self._texts = root / 'sys/bus/pci/devices', root / 'texts'
        self._devices.mkdir(parents=True)
        self._texts.mkdir()
        self.count = 0

    def add(self, vendor: str, device: str, pci_class: str, **files: str) -> pathlib.Path:
        bus, rest = divmod(self.count, 256)
        path = self._devices / f'0000:{bus:02x}:{rest >> 3:02x}.{rest & 7}'
        path.mkdir()
        self.count += 1
        files |= {'vendor': f'0x{vendor}', 'device': f'0x{device}', 'class': f'0x{pci_class}'}
        for name, text in files.items():
            # A link takes less time than a file.
            known = self._texts / f'{name}-{text}'
            if not known.exists():
                known.write_text(text)
            os.link(known, path / name)
        return path

    def add_card(self, vendor: str, devices: tuple[str, str], pci_class: str, most: int) -> None:
        """A card with so many virtual functions, and the ids of it and of them."""
        files = {f'sriov_{name}vfs': str(most) for name in ('num', 'total')}
        files |= {'sriov_offset': '1', 'sriov_stride': '1', 'sriov_vf_device': devices[1]}
        card = self.add(vendor, devices[0], pci_class, **files)
        for number in range(most):
            function = self.add(vendor, devices[1], pci_class)
            (function / 'physfn').symlink_to(f'../{card.name}')
            (card / f'virtfn{number}').symlink_to(f'../{function.name}')


def test_ten_thousand_functions(tmp_path):
    """Network cards, and QATs whose maker makes the bridges, too.

    The aim is 5 s and 200 MB; on a machine with other work it may take longer.
    """
    many = Many(tmp_path)
    for _ in range(24):
        many.add_card('15b3', ('1021', '101e'), '020000', 200)
    for _ in range(32):
        many.add_card('8086', ('37c8', '37c9'), '0b4000', 16)
    while many.count < 10_000:
        many.add('8086', 'a120', '060400')
    command = [sys.executable, '-c', SCAN, str(tmp_path)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert told['found'] == {'intel_qat': 32, 'nic': 24}
    assert told['opened'] <= 7 * many.count
    assert told['listed'] <= many.count
    assert told['seconds'] < 20
    assert told['mib'] < 200
