# SPDX-License-Identifier: Apache-2.0
"""NVIDIA cards, with NVML as it is, as it fails, and absent."""

from __future__ import annotations

import sys
import types

import pytest

from cyborg_lite import driver
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import testing
from cyborg_lite.drivers import nvidia_gpu
from tests.unit.drivers import captures


def discover(host: driver.Host) -> list[driver.Device]:
    return testing.discover(nvidia_gpu.NvidiaGpu, host)


@pytest.mark.parametrize(
    ('pci_class', 'found'),
    [('030000', 1), ('030200', 1), ('038000', 0), ('068000', 0), ('040300', 0)],
)
def test_classes(tmp_path, pci_class, found):
    host = captures.host(tmp_path, [captures.function('0000:01:00.0', '10de:ffff', pci_class)])
    devices = discover(host)
    assert len(devices) == found
    for card in devices:
        assert card.model == 'NVIDIA GPU ffff'
        assert card.deployables[0].resource_class == 'PGPU'
        assert card.deployables[0].traits == ['CUSTOM_NVIDIA_FFFF']


def test_switches_are_no_gpus(tmp_path):
    assert len(discover(hosts.find('hgx-8gpu', tmp_path))) == 8


@pytest.mark.parametrize(
    ('text', 'traits'),
    [
        ('ID    : vGPU Name\n1428 : NVIDIA H200X-141C\n', ['CUSTOM_NVIDIA_2335_H200X_141C']),
        ('36 : GRID T4-2B', ['CUSTOM_NVIDIA_2335_T4_2B']),
        ('', []),
        ('1 :\n: x\nx : y\n2 : \u96c7\n', []),
        (' : ' * 1000, []),
    ],
)
def test_vgpu_types(tmp_path, text, traits):
    virtual = {'id': '10de:2335', 'total': '1', 'enabled': '1', 'offset': '4'}
    function = captures.function('0000:01:00.0', '10de:2335', '030200', virtual=virtual)
    host = captures.host(tmp_path, [function])
    place = host.root / 'sys/bus/pci/devices/0000:01:00.4/nvidia'
    place.mkdir()
    (place / 'creatable_vgpu_types').write_text(text)
    [card] = discover(host)
    assert card.deployables[0].traits == ['CUSTOM_NVIDIA_2335', *traits]
    assert card.deployables[0].resource_class == 'VGPU'


class NVMLError(Exception):
    """As the library's."""


@pytest.fixture
def nvml(monkeypatch):
    """A library that knows two GPUs, in place of the real one."""
    module = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetPciInfo=lambda gpu: types.SimpleNamespace(busId=f'0000000{gpu}:0A:00.0'),
        nvmlDeviceGetName=lambda gpu: 'NVIDIA H200',
        nvmlDeviceGetUUID=lambda gpu: f'GPU-{gpu}',
        nvmlDeviceGetMemoryInfo=lambda gpu: types.SimpleNamespace(total=150754820096),
    )
    monkeypatch.setitem(sys.modules, 'pynvml', module)
    return module


@pytest.fixture
def local(tmp_path):
    functions = [captures.function(f'000{n}:0a:00.0', '10de:ffff', '030200') for n in range(2)]
    copy = captures.host(tmp_path, functions)
    return driver.Host('local', copy.root, recorded=False)


def test_nvml_adds_what_it_knows(nvml, local):
    cards = discover(local)
    assert {c.model for c in cards} == {'NVIDIA H200'}
    assert [c.vendor_board for c in cards] == [
        {'uuid': 'GPU-0', 'memory_mb': 143771},
        {'uuid': 'GPU-1', 'memory_mb': 143771},
    ]


def test_a_recorded_host_has_not_the_gpus_of_this_one(nvml, local):
    cards = discover(driver.Host('copy', local.root))
    assert {c.model for c in cards} == {'NVIDIA GPU ffff'}


def fail(*args):
    raise NVMLError('GPU is lost')


@pytest.mark.parametrize('call', ['nvmlInit', 'nvmlDeviceGetCount', 'nvmlDeviceGetHandleByIndex'])
def test_nvml_that_fails_loses_no_card(nvml, local, call):
    setattr(nvml, call, fail)
    assert [c.model for c in discover(local)] == ['NVIDIA GPU ffff'] * 2


def test_a_gpu_that_is_lost_takes_no_other_along(nvml, local):
    nvml.nvmlDeviceGetName = lambda gpu: fail() if gpu == 0 else 'NVIDIA H200'
    assert [c.model for c in discover(local)] == ['NVIDIA GPU ffff', 'NVIDIA H200']


def test_no_package(monkeypatch, local):
    monkeypatch.setitem(sys.modules, 'pynvml', None)
    assert [c.model for c in discover(local)] == ['NVIDIA GPU ffff'] * 2
