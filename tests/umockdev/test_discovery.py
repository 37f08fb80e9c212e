# SPDX-License-Identifier: Apache-2.0
"""Discovery of this machine, unchanged, where umockdev shows another /sys to it.

The other tests of drivers read a tree below a directory. Here the process reads /sys itself, and
runs the tools that its PATH has.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from cyborg_lite import conf as options
from cyborg_lite.agent import drivers
from cyborg_lite.driver import description
from cyborg_lite.driver import host as hosts
from tests.unit.drivers import captures

#: The timeout of a discovery, in seconds; none comes near it.
BOUND = 120
#: Prints what the drivers find on this machine.
LOOK = f"""
import json
from cyborg_lite import driver
from {__name__} import found
print(json.dumps(found(driver.Host.local('here'))))
"""


def found(host):
    """What the drivers tell of a host, without what only recorded hosts have."""
    looked = drivers.Drivers(options.load(files=[]), host).discover(patience=BOUND)
    devices = [device.facts() for device in looked.devices]
    for device in devices:
        # A description has it for hosts that are not real.
        device.pop('health'), device.pop('health_reason')
    return json.loads(json.dumps(devices))


def record(host):
    """The PCI functions of a host as a record of umockdev: see umockdev-record(1)."""
    blocks = []
    for function in host.tree.functions():
        place = function.path.relative_to(host.root / 'sys')
        lines = [f'P: /{place}', 'E: SUBSYSTEM=pci', f'E: PCI_SLOT_NAME={function.bdf}']
        for path in sorted(function.path.rglob('*')):
            name = path.relative_to(function.path)
            if path.is_symlink():
                lines.append(f'L: {name}={os.readlink(path)}')
            elif path.is_file():
                text = path.read_text().replace('\\', '\\\\').replace('\n', '\\n')
                lines.append(f'A: {name}={text}')
        blocks.append('\n'.join(lines))
    return '\n\n'.join(blocks) + '\n'


#: What a described host has and a record of devices does not: files of the kernel elsewhere, and
#: the answers of libraries, which this machine lacks.
ELSEWHERE = ('proc', 'sys/module', 'tools/nvml')


def leave_out(host):
    for place in ELSEWHERE:
        shutil.rmtree(host.root / place, ignore_errors=True)


#: Prints what a tool printed with these arguments; see description.output.
TOOL = """#!/bin/sh
name=$(IFS=_; echo "$*" | tr / _)
exec cat "{outputs}/${{name:-default}}.txt"
"""


def install(host, place):
    """Programs in place of the tools of a host, which print what those print there."""
    place.mkdir()
    for outputs in sorted((host.root / description.output('', ()).parent).glob('*')):
        program = place / outputs.name
        program.write_text(TOOL.format(outputs=outputs))
        program.chmod(0o755)


def discovered(text, place, tools=''):
    """What a process finds on this machine, which sees the /sys of a record."""
    (place / 'host.umockdev').write_text(text)
    said = subprocess.run(
        ['umockdev-run', '--device', place / 'host.umockdev', '--', sys.executable, '-c', LOOK],
        env=os.environ | {'PATH': f'{tools}:{os.environ["PATH"]}'},
        capture_output=True,
        text=True,
        timeout=BOUND,
    )
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


@pytest.mark.parametrize('name', sorted(hosts.shipped()))
def test_a_described_host_is_found_as_on_this_machine(tmp_path, name):
    host = hosts.find(name, tmp_path)
    leave_out(host)
    install(host, tmp_path / 'bin')
    devices = discovered(record(host), tmp_path, tmp_path / 'bin')
    assert devices
    assert devices == found(host)


def test_a_record_of_a_real_host(tmp_path):
    """An NVIDIA A2 with 16 virtual functions, and mediated devices of three."""
    text = captures.text('nvidia/a2-vgpu-sriov-mdev.trim.umockdev')
    [card] = discovered(text, tmp_path)
    assert card == found(captures.umockdev(tmp_path, text))[0]
    [part] = card['deployables']
    assert (card['model'], card['numa_node'], len(part['attach_handles'])) == ('NVIDIA A2', 0, 16)
