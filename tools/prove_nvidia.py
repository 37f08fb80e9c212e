#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prove the NVIDIA driver on the cards of this machine: python tools/prove_nvidia.py --help.

It needs cyborg_lite installed with its extra ``nvidia``, NVIDIA's driver, and one card that nobody
uses. It compares what the driver finds with what nvidia-smi prints, starts the service, allocates
every accelerator, runs a CUDA process on one, kills the service with SIGKILL meanwhile, and gives
all back. It starts a CUDA process without a lease, and expects that the service shows it as rogue.
It has to run as root. It changes no setting of a card, and says so if one has changed.
"""

from __future__ import annotations

import argparse
import collections.abc
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import typing
import unittest.mock
import urllib.error
import urllib.request

from oslo_config import cfg
import pynvml

from cyborg_lite import client
from cyborg_lite import driver
from cyborg_lite.agent import processes
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import sysfs
from cyborg_lite.driver import testing
from cyborg_lite.driver import xid
from cyborg_lite.drivers import nvidia_gpu

#: Where this has passed: the support matrix tells it.
PROVED = (
    (
        'nvidia_gpu',
        'real card',
        'one, whole, and the processes that use it, 2026-11-27',
        'NVIDIA H100 80GB HBM3',
    ),
    (
        'nvidia_gpu',
        'real card',
        'one, whole, and the processes that use it, 2026-11-27',
        'NVIDIA H200',
    ),
)
#: What nvidia-smi is asked of each card.
FACTS = ('index', 'pci.bus_id', 'name', 'uuid', 'memory.total')
SETTINGS = ('mig.mode.current', 'mig.mode.pending', 'persistence_mode', 'ecc.mode.current',
            'compute_mode', 'power.limit')  # fmt: skip
#: How long the service may take to answer, in seconds.
START = 60
#: How often the agent of the service reports, in seconds.
INTERVAL = 2
LOOKS = 20


class Failed(Exception):
    """Something is not as it has to be."""


def expect(what: str, found: typing.Any, wanted: typing.Any) -> None:
    if found != wanted:
        raise Failed(f'{what}: expected {wanted!r}, found {found!r}')
    print(f'ok: {what}')


def smi(*names: str) -> list[list[str]]:
    """What nvidia-smi prints of each card, by the names of its fields."""
    command = ['nvidia-smi', f'--query-gpu={",".join(names)}', '--format=csv,noheader,nounits']
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return [[value.strip() for value in line.split(',')] for line in lines.splitlines()]


def smi_processes() -> list[str]:
    """The pids of the processes that nvidia-smi lists as computing."""
    command = ['nvidia-smi', '--query-compute-apps=pid', '--format=csv,noheader']
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=60
    ).stdout.split()


def of_driver(card: driver.Device) -> list[str]:
    board = card.vendor_board or {}
    memory = str(board.get('memory_mb', '[N/A]'))
    return [str(board.get('index')), card.address, card.model, str(board.get('uuid')), memory]


def prove_driver() -> None:
    told = smi(*FACTS)
    expected = sorted([[n, sysfs.normal(bus) or bus, *rest] for n, bus, *rest in told])
    cards = testing.discover(nvidia_gpu.NvidiaGpu, hosts.Host.local('here'))
    expect('the cards are those of nvidia-smi', sorted(map(of_driver, cards)), expected)
    subject = nvidia_gpu.NvidiaGpu(hosts.Host.local('here'), cfg.ConfigOpts())
    looks, started = [], time.monotonic()
    for _ in range(LOOKS):
        devices, notes = subject.look()
        looks.append((json.dumps([each.facts() for each in devices]), tuple(notes)))
    each = (time.monotonic() - started) / LOOKS
    expect(f'{LOOKS} looks are alike and note nothing', {(looks[0][0], ())}, set(looks))
    print(f'    one look takes {each * 1000:.1f} ms')
    with unittest.mock.patch.dict(sys.modules, {'pynvml': None}):
        bare = testing.discover(nvidia_gpu.NvidiaGpu, hosts.Host.local('here'))
    named = [(card.address, card.model) for card in cards]
    expect(
        'without NVML the cards have the same names', [(c.address, c.model) for c in bare], named
    )


def prove_health() -> None:
    """The cards are well, and nothing says otherwise: the driver, NVML, and the kernel's log."""
    for card in testing.discover(nvidia_gpu.NvidiaGpu, hosts.Host.local('here')):
        expect(f'{card.address} is well', (card.health, card.health_reason), ('ok', None))
        node = pathlib.Path(f'/sys/bus/pci/devices/{card.address}/numa_node').read_text().strip()
        expect('its NUMA node', -1 if card.numa_node is None else card.numa_node, int(node))
        expect('no process computes on it', card.processes, frozenset())
    pynvml.nvmlInit()
    try:
        for number in range(pynvml.nvmlDeviceGetCount()):
            gpu = pynvml.nvmlDeviceGetHandleByIndex(number)
            asked = [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]
            [field] = pynvml.nvmlDeviceGetFieldValues(gpu, asked)
            told = field.nvmlReturn, field.value.uiVal
            expect('NVML says that nothing has to be done for recovery', told, (0, 0))
    finally:
        pynvml.nvmlShutdown()
    log = pathlib.Path('/dev/kmsg')
    expect('the log of the kernel has no XID of the last hour', xid.recent(log), {})


def prove_recording(directory: pathlib.Path) -> None:
    tarball = directory / 'host.tar.gz'
    subprocess.run(['cyborg-lite', 'record', tarball], check=True, stdout=subprocess.DEVNULL)
    copy = directory / 'copy'
    copy.mkdir()
    replayed = testing.discover(nvidia_gpu.NvidiaGpu, hosts.find(str(tarball), copy))
    cards = testing.discover(nvidia_gpu.NvidiaGpu, hosts.Host.local('here'))
    places = [(card.address, card.model, card.numa_node) for card in cards]
    found = [(card.address, card.model, card.numa_node) for card in replayed]
    expect('a recording shows the same cards', found, places)


class Service:
    """``cyborg-lite up`` of this machine, on a port and a directory of its own."""

    def __init__(self, directory: pathlib.Path) -> None:
        with socket.create_server(('127.0.0.1', 0)) as free:
            self.port = free.getsockname()[1]
        self.directory = directory
        self.log = directory / 'up.log'

    def __enter__(self) -> Service:
        command = ['cyborg-lite', 'up', '--port', str(self.port)]
        command += ['--state-dir', str(self.directory / 'state')]
        options = self.directory / 'options.conf'
        options.write_text(f'[agent]\nreport_interval = {INTERVAL}\n')
        command += ['--config-file', str(options)]
        with open(self.log, 'ab') as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START
        while not self.accelerators():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f'the service shows no accelerator: {self.log.read_text()}')
            time.sleep(0.2)
        return self

    def __exit__(self, *args: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(START)

    def call(self, method: str, path: str, body: typing.Any = None) -> tuple[int, typing.Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f'http://127.0.0.1:{self.port}/v2/{path}', data, method=method,
            headers={'Content-Type': 'application/json'},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                content = answer.read()
                return answer.status, json.loads(content) if content else None
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def accelerators(self, query: str = '') -> list[dict[str, typing.Any]]:
        try:
            status, found = self.call('GET', f'accelerators?driver=nvidia_gpu{query}')
        except OSError:  # it does not listen yet
            return []
        return typing.cast('list[dict[str, typing.Any]]', found['accelerators'])

    def look(self) -> None:
        """Wait for two more reports of the agent: it looked for the second one after this call."""
        deadline = time.monotonic() + START
        for _ in range(2):
            seen = self.seen()
            while self.seen() == seen:
                if time.monotonic() > deadline:
                    raise Failed(f'the agent does not report: {self.log.read_text()}')
                time.sleep(0.2)

    def seen(self) -> str:
        _, found = self.call('GET', 'hosts')
        return typing.cast('str', found['hosts'][0]['seen_at'])

    def rogues(self) -> list[str]:
        return [each['rogue'] for each in self.accelerators() if each['rogue']]


#: Uses the one card that CUDA shows, through the driver's own library alone, and prints its UUID.
USE = """
import ctypes, sys, uuid
cuda = ctypes.CDLL('libcuda.so.1')
def call(name, *args):
    if error := getattr(cuda, name)(*args):
        raise SystemExit(f'{name}: error {error}')
count, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
identity = (ctypes.c_ubyte * 16)()
call('cuInit', 0)
call('cuDeviceGetCount', ctypes.byref(count))
call('cuDeviceGetUuid_v2', identity, 0)
call('cuDevicePrimaryCtxRetain', ctypes.byref(context), 0)
call('cuCtxSetCurrent', context)
call('cuMemAlloc_v2', ctypes.byref(pointer), ctypes.c_size_t(1 << 28))
call('cuMemsetD8_v2', pointer, ctypes.c_ubyte(165), ctypes.c_size_t(1 << 28))
back = ctypes.c_ubyte()
call('cuMemcpyDtoH_v2', ctypes.byref(back), pointer, ctypes.c_size_t(1))
call('cuMemFree_v2', pointer)
print(count.value, uuid.UUID(bytes=bytes(identity)), back.value, flush=True)
if 'stay' in sys.argv:
    sys.stdin.read()
"""
#: Looks at the first card through NVML, as a tool that monitors, and keeps it open.
MONITOR = """
import sys, pynvml
pynvml.nvmlInit()
print(pynvml.nvmlDeviceGetUtilizationRates(pynvml.nvmlDeviceGetHandleByIndex(0)).gpu, flush=True)
sys.stdin.read()
"""


def use(ids: dict[str, typing.Any]) -> None:
    """Run a CUDA process that may see one accelerator, and check that it sees that one."""
    environment = os.environ | {'CUDA_VISIBLE_DEVICES': ids['uuid']}
    done = subprocess.run(
        [sys.executable, '-c', USE], env=environment, capture_output=True, text=True, timeout=120
    )
    told = f'1 {re.sub("^(GPU|MIG)-", "", ids["uuid"])} 165'
    expect('a process sees the accelerator and uses its memory', done.stdout.strip(), told)


@contextlib.contextmanager
def running(*command: str) -> collections.abc.Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that has printed its first line, until the end of the block."""
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        yield process, process.stdout.readline().strip()
        process.stdin.close()


def prove_processes(directory: pathlib.Path) -> None:
    """A process that computes without a lease is rogue; a holder, or a monitor, is not."""
    with Service(directory) as service:
        [card, *_] = service.accelerators()
        identity = re.sub('^(GPU|MIG)-', '', card['ids']['uuid'])
        with running(sys.executable, '-c', MONITOR):
            node = f'/dev/nvidia{card["ids"]["minor"]}'
            opened = [use.process.pid for use in processes.uses([node])]
            print(f'    {len(opened)} processes have {node} open: {opened}')
            service.look()
            expect('a tool that monitors is no rogue', service.rogues(), [])
        with running(sys.executable, '-c', USE, 'stay') as (process, line):
            expect('a process without a lease computes', line, f'1 {identity} 165')
            expect('nvidia-smi lists it', str(process.pid) in smi_processes(), True)
            service.look()
            [rogue] = service.rogues()
            expect('it is rogue, by its pid', rogue.split()[0], str(process.pid))
            print(f'    {rogue}')
            state = {each['state'] for each in service.accelerators() if each['rogue']}
            expect('its card is not given out', state, {'rogue'})
        service.look()
        expect('once it has ended nobody is', service.rogues(), [])
        run = ['cyborg-lite', 'run', '--', sys.executable, '-c', USE, 'stay']
        os.environ[client.VARIABLE] = str(directory / 'state' / client.SOCKET)
        with running(*run) as (process, line):
            expect('cyborg-lite run: the process sees one card', line.split()[::2], ['1', '165'])
            service.look()
            expect('the holder of a lease is no rogue', service.rogues(), [])
            held = [each['ids']['uuid'] for each in service.accelerators('&state=held')]
            expect('it sees the card that it holds', [f'GPU-{line.split()[1]}'], held)


def prove_service(directory: pathlib.Path) -> None:
    with Service(directory) as service:
        found = service.accelerators()
        expect('all are free', {each['state'] for each in found}, {'free'})
        allocations = []
        for number, each in enumerate(found):
            body = {'groups': [{'resources': {each['resource_class']: 1}}],
                    'consumer': {'type': 'process', 'id': str(number)}}  # fmt: skip
            status, allocation = service.call('POST', 'allocations', body)
            expect(f'allocation {number + 1} of {len(found)}', status, 201)
            allocations.append(allocation)
        given = [part['uuid'] for each in allocations for part in each['accelerators']]
        expect('each is given once', sorted(given), sorted(each['uuid'] for each in found))
        status, answer = service.call('POST', 'allocations', body)
        expect('one more is refused', status, 409)
        print(f'    {json.dumps(answer)[:300]}')
        use(allocations[0]['accelerators'][0]['ids'])
        service.process.kill()
        service.process.wait()
        print('    the service was killed')
    with Service(directory) as service:
        held = sorted(each['uuid'] for each in service.accelerators('&state=held'))
        expect('after a kill all are held still', held, sorted(given))
        for allocation in allocations:
            status, _ = service.call('DELETE', f'allocations/{allocation["uuid"]}')
            expect('an allocation is released', status, 204)
        expect('all are free again', {each['state'] for each in service.accelerators()}, {'free'})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.parse_args()
    before = smi(*SETTINGS)
    print(f'{len(before)} cards; {dict(zip(SETTINGS, before[0], strict=True))}')
    with tempfile.TemporaryDirectory() as directory:
        prove_driver()
        prove_health()
        prove_recording(pathlib.Path(directory))
        prove_service(pathlib.Path(directory))
        prove_processes(pathlib.Path(directory))
    expect('the settings of the cards are as they were', smi(*SETTINGS), before)


if __name__ == '__main__':
    try:
        main()
    except (Failed, OSError, subprocess.SubprocessError) as error:
        sys.exit(f'failed: {error}')
