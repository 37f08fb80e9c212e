# SPDX-License-Identifier: Apache-2.0
"""Hosts made from captures of real machines."""

from __future__ import annotations

import collections.abc
import functools
import lzma
import os
import pathlib
import re
import tarfile
import time
import typing
import xml.etree.ElementTree

import pytest

from cyborg_lite import driver
from cyborg_lite.driver import description
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import sysfs

#: The nodes of KFD.
NODES = pathlib.PurePath('sys/class/kfd/kfd/topology/nodes')
ROOT = pathlib.Path(__file__).parents[4] / 'shared/hw/fixtures/open'

CLASSES = {
    'Ethernet controller': '020000',
    'Non-Volatile memory controller': '010802',
    'PCI bridge': '060400',
    'Processing accelerators': '120000',
    'RAID bus controller': '010400',
    'SATA controller': '010600',
    'Serial Attached SCSI controller': '010700',
    'Signal processing controller': '118000',
    'VGA compatible controller': '030000',
}
VENDORS = {
    'Broadcom / LSI': '1000',
    'DERA Storage': '1d78',
    'Huawei Technologies': '19e5',
    'Intel Corporation': '8086',
    'Red Hat': '1af4',
}


def path(name: str) -> pathlib.Path:
    """The path of a capture; skips the test if there are none."""
    if not ROOT.is_dir():
        pytest.skip(f'no captures of real machines at {ROOT}')
    return ROOT / name


def text(name: str) -> str:
    content = path(name).read_bytes()
    return (lzma.decompress(content) if name.endswith('.xz') else content).decode()


def host(tmp_path: pathlib.Path, functions: list[dict], tools: dict | None = None) -> driver.Host:
    """A host with these functions and tools, made like a described one."""
    data = description.parse('{}') | {'functions': functions, 'tools': tools or {}}
    description.write(data, tmp_path / 'capture')
    return driver.Host('capture', tmp_path / 'capture')


def slow(
    monkeypatch: pytest.MonkeyPatch, host: driver.Host, tool: str, seconds: float
) -> collections.abc.Sequence[float]:
    """The time, as the only item: each run of the tool takes so long."""
    clock, run = [0.0], host.run

    def take(*args: str, **more: typing.Any) -> str | None:
        clock[0] += seconds * (args[0] == tool)
        return run(*args, **more)

    monkeypatch.setattr(host, 'run', take)
    monkeypatch.setattr(time, 'monotonic', lambda: clock[0])
    return clock


def function(bdf: str, ids: str, pci_class: str = '120000', node: str = '0', **more) -> dict:
    return {'id': ids, 'class': pci_class, 'at': {node: [bdf]}} | more


def from_lspci(text: str) -> list[dict]:
    """From lines of lspci, with ``-n``, ``-nn``, ``-D`` or plain."""
    pattern = re.compile(
        r'\s*(?P<bdf>(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) (?P<kind>[^:[]+?)'
        r'(?: \[(?P<code>[0-9a-f]{4})\])?: (?P<name>.*?)(?:\s*\(rev (?P<revision>\w\w)\))?\s*'
    )
    found = {}
    for line in text.splitlines():
        if match := pattern.fullmatch(line):
            name, kind = match['name'], match['kind']
            known = re.search('([0-9a-f]{4}:[0-9a-f]{4})', name)
            unnamed = re.search('Device ([0-9a-f]{4})', name)
            vendor = next((VENDORS[v] for v in VENDORS if v in name), 'ffff')
            ids = known[1] if known else f'{vendor}:{unnamed[1] if unnamed else "ffff"}'
            code = f'{match["code"] or kind}00'
            pci_class = CLASSES.get(kind) or code
            bdf = match['bdf'] if match['bdf'].count(':') == 2 else f'0000:{match["bdf"]}'
            found[bdf] = function(bdf, ids, pci_class, revision=match['revision'] or '00')
    return list(found.values())


def from_udev(text: str) -> list[dict]:
    """From blocks of ``udevadm info --export-db``."""
    functions = []
    for block in text.split('\n\n'):
        told = dict(re.findall(r'^E: (PCI_\w+|SUBSYSTEM|DRIVER)=(\S+)$', block, re.MULTILINE))
        if told.get('SUBSYSTEM') == 'pci':
            ids, pci_class = told['PCI_ID'].lower(), told['PCI_CLASS'].lower().zfill(6)
            bound = {'driver': told['DRIVER']} if 'DRIVER' in told else {}
            functions.append(function(told['PCI_SLOT_NAME'], ids, pci_class, **bound))
    return functions


def from_nvidia_xml(text: str) -> list[dict]:
    """From ``nvidia-smi -q -x``; MIG devices and all."""
    functions = []
    for gpu in xml.etree.ElementTree.fromstring(text).iter('gpu'):
        ids = gpu.findtext('pci/pci_device_id').removeprefix('0x').lower()
        bdf = sysfs.normal(gpu.findtext('pci/pci_bus_id'))
        functions.append(function(bdf, f'{ids[4:]}:{ids[:4]}', '030200'))
    return functions


def from_npu_smi(text: str, ids: str) -> list[dict]:
    """The functions that a table of ``npu-smi info`` shows, with these ids."""
    buses = dict.fromkeys(re.findall(r'\b\w{4}:\w\w:\w\w\.\d\b', text.lower()))
    return [function(bus, ids) for bus in buses]


def rings(*sizes: int) -> str:
    """The matrix of ``npu-smi info -t topo`` for NPUs in HCCS rings of these sizes.

    Source: hicann/driver, npu_info_print_ext.c.
    """
    ring = [number for number, size in enumerate(sizes) for _ in range(size)]
    names = [f'NPU{number}' for number in range(len(ring))]
    words = [['HCCS' if one == other else 'SYS' for other in ring] for one in ring]
    for number, row in enumerate(words):
        row[number] = 'X'
    lines = [['', *names, 'CPU Affinity']]
    lines += [[name, *row, '0-23'] for name, row in zip(names, words, strict=True)]
    return '\n'.join(''.join(f'{cell:<10}' for cell in line) for line in lines)


def umockdev(tmp_path: pathlib.Path, text: str) -> driver.Host:
    """A host from a umockdev record: attributes and links as they are."""
    root = tmp_path / 'umockdev'
    devices = root / sysfs.DEVICES
    devices.mkdir(parents=True)
    for block in text.split('\n\n'):
        lines = [line.partition(': ')[::2] for line in block.splitlines()]
        places = [value for key, value in lines if key == 'P']
        if not places:
            continue
        place = root / 'sys' / places[0].lstrip('/')
        place.mkdir(parents=True, exist_ok=True)
        if 'E: SUBSYSTEM=pci' in block.splitlines():
            (devices / place.name).symlink_to(os.path.relpath(place, devices))
        for key, value in lines:
            name, _, content = value.partition('=')
            target = place / name
            if key == 'A':
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(content.replace('\\n', '\n'))
            elif key == 'L':
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(content)
    return driver.Host('umockdev', root)


def kfd(tmp_path: pathlib.Path, name: str) -> tuple[driver.Host, list[dict[str, int]]]:
    """A host with the nodes of a capture, and the properties of those of GPUs.

    It only has nodes: the functions are made from them.
    """
    told = {}
    # Nothing is extracted: Python 3.11.2 does not know how to do that safely.
    with tarfile.open(path(name)) as tar:
        for member in tar:
            place = pathlib.PurePath(member.name)
            if member.isfile() and place.match('nodes/*/properties'):
                told[int(place.parent.name)] = tar.extractfile(member).read().decode()
    nodes = [dict(line.split() for line in told[number].splitlines()) for number in sorted(told)]
    gpus = [{key: int(facts[key]) for key in facts} for facts in nodes]
    gpus = [facts for facts in gpus if facts['simd_count']]
    places = {(each['domain'], each['location_id'] & ~7): each for each in gpus}
    functions = [
        function(
            f'{domain:04x}:{place >> 8:02x}:{place >> 3 & 31:02x}.0',
            f'1002:{facts["device_id"]:04x}',
        )
        for (domain, place), facts in places.items()
    ]
    made = host(tmp_path, functions)
    for number, content in told.items():
        (made.root / NODES / str(number)).mkdir(parents=True)
        (made.root / NODES / str(number) / 'properties').write_text(content)
    return made, gpus


def nvme(tmp_path: pathlib.Path, name: str) -> driver.Host:
    """A host with the tree of a capture, which has no PCI attributes: the ids are made up."""
    made = hosts.find(str(path(name)), tmp_path)
    listed = made.root / sysfs.DEVICES
    listed.mkdir(parents=True)
    for controller in (made.root / 'sys/class/nvme').iterdir():
        place = controller.resolve().parents[1]
        (listed / place.name).symlink_to(os.path.relpath(place, listed))
        texts = {'vendor': '0x144d', 'device': '0xa824', 'class': '0x010802'}
        texts['numa_node'] = (controller / 'numa_node').read_text()
        for attribute, content in texts.items():
            (place / attribute).write_text(content)
        (place / 'driver').symlink_to('../../../bus/pci/drivers/nvme')
    return made


@functools.cache
def every() -> list[str]:
    """All captures, for a check that each is used."""
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.rglob('*') if p.is_file())
