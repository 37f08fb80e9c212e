# SPDX-License-Identifier: Apache-2.0
"""One contract, every driver that we ship, every host that we ship."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil

from oslo_config import cfg
import pytest

from cyborg_lite import contract
from cyborg_lite import driver
from cyborg_lite import drivers
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import testing


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
