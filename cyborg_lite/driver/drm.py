# SPDX-License-Identifier: Apache-2.0
"""What programs do on GPUs, as the kernel's Direct Rendering Manager (DRM) tells of open nodes.

An open node proves nothing: a program that looks for GPUs opens all, and a display server has some
open all the time.  The kernel counts for each open node, a *client*, how long which engines of the
GPU worked for it.  What AMD's compute driver runs is not counted: see drivers/tools/kfd.py.

Source: Linux, Documentation/gpu/drm-usage-stats.rst, and what i915 (i915_drm_client.c), xe
(xe_drm_client.c) and amdgpu (amdgpu_fdinfo.c) write.
"""

from __future__ import annotations

import collections
import collections.abc
import math
import os
import pathlib
import re
import time
import typing

from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import pids
from cyborg_lite.driver import sysfs

#: The engines with which a program draws or copies, as i915, xe and amdgpu name them: a display
#: server uses them. All others compute, or code video.
DRAWING = frozenset(('render', 'copy', 'rcs', 'bcs', 'gfx', 'dma'))
#: How much an engine has to work before the program counts as one that uses the GPU: looking for
#: GPUs may take a moment of work on each. In nanoseconds; and in cycles of the clock of an Intel
#: GPU, which has 12 to 38 MHz.
MOMENT, CYCLES = 50_000_000, 1_000_000
#: The maximum size of the text of a node, in bytes, and of clients of a GPU.
TEXT, CLIENTS = 16384, 4096

#: The keys are those of the kernel's documentation.
DRIVER = re.compile('^drm-driver:', re.MULTILINE)
PDEV = re.compile(r'^drm-pdev:\s*(\S{1,32})$', re.MULTILINE)
CLIENT = re.compile(r'^drm-client-id:\s*([0-9]{1,20})$', re.MULTILINE)
ENGINE = re.compile(
    r'^drm-(engine-capacity|engine|total-cycles|cycles)-([a-z0-9_-]{1,32}):'
    r'\s*([0-9]{1,20})(?: ns)?$',
    re.MULTILINE,
)

Facts = dict[str, typing.Any]


class Work(typing.NamedTuple):
    """The work that engines of one name have done for a client."""

    #: for how long, in nanoseconds, or in cycles if a total is told
    busy: int
    #: the cycles that have passed at all
    total: int | None
    #: how many engines have the name
    engines: int


#: The work of a client by the name of the engines.
Works = dict[str, Work]


class Usage:
    """The last two looks at the clients of a host."""

    def __init__(self, host: hosts.Host) -> None:
        self._host = host
        self._told: Facts | None = None
        self._before: Facts | None = None
        #: the time between the looks, in nanoseconds
        self._between = 0
        self._looked = 0

    def look(self) -> None:
        """Ask again.

        :raises ToolError: when a test sets it.
        """
        looked = time.monotonic_ns()
        self._before, self._told = self._told, None
        self._between, self._looked = looked - self._looked, looked
        told = self._host.ask('drm', 'clients', lambda: read(self._host.root / 'proc'))
        if isinstance(told, dict) and isinstance(told.get('gpus'), dict):
            self._told = told

    def processes(self, card: sysfs.Function) -> frozenset[int] | None:
        """The pids of the programs that compute or code video on a GPU; None if unknown."""
        return None if self._told is None else pids.of(self._told['gpus'].get(card.bdf))

    def utilization(self, card: sysfs.Function) -> int | None:
        """How busy the busiest engines of a GPU were between the looks, in percent.

        None if it is unknown: the first time, if not all clients tell, and if one that has worked
        before is gone.
        """
        # The time between two recordings is unknown.
        if self._host.recorded or not (self._before and self._told):
            return None
        silent = {*self._before['silent'], *self._told['silent']} & {*card.entries('drm')}
        if silent or not (self._before['complete'] and self._told['complete']):
            return None
        before, now = self._clients(self._before, card), self._clients(self._told, card)
        gone = (before[client].values() for client in before.keys() - now.keys())
        if any(work.busy for works in gone for work in works):
            return None
        loads: collections.Counter[str] = collections.Counter()
        for client, works in now.items():
            for engine, work in works.items():
                last = before.get(client, {}).get(engine, Work(0, 0, 1))
                passed = self._between if work.total is None else work.total - (last.total or 0)
                # A counter may be behind for a while.
                done = max(0, work.busy - last.busy)
                loads[engine] += math.ceil(100 * done / max(1, passed * work.engines))
        return min(100, max(loads.values(), default=0))

    @staticmethod
    def _clients(told: Facts, card: sysfs.Function) -> dict[str, Works]:
        return typing.cast('dict[str, Works]', told['gpus'].get(card.bdf, {}).get('clients', {}))


def read(proc: pathlib.Path) -> Facts:
    """The clients of all GPUs, as this process sees them.

    :param proc: the file system of processes.
    """
    gpus: dict[str, Facts] = {}
    silent = set()
    for name in filter(str.isdecimal, _names(proc)):
        for node, text in _texts(f'{proc}/{name}'):
            bus, client, works = PDEV.search(text), CLIENT.search(text), parse(text)
            address = sysfs.normal(bus[1]) if bus else None
            if not (address and client and works):
                silent.add(node)
                continue
            gpu = gpus.setdefault(address, {'pids': [], 'clients': {}})
            if len(gpu['clients']) < CLIENTS:
                gpu['clients'][client[1]] = works
            else:
                silent.add(node)
            if int(name) not in gpu['pids'] and computes(works):
                gpu['pids'].append(int(name))
    return {'complete': pids.sees_all(), 'silent': sorted(silent), 'gpus': gpus}


def parse(text: str) -> Works:
    """The work of a client, from the text of its node."""
    found: dict[str, dict[str, int]] = {}
    for key, engine, number in ENGINE.findall(text):
        found.setdefault(engine, {})[key] = int(number)
    works = {}
    for engine, told in found.items():
        engines = told.get('engine-capacity') or 1
        if 'engine' in told:
            works[engine] = Work(told['engine'], None, engines)
        elif 'cycles' in told and 'total-cycles' in told:
            works[engine] = Work(told['cycles'], told['total-cycles'], engines)
    return works


def computes(works: Works) -> bool:
    """Whether a client has done more than to look for GPUs, to draw and to copy."""
    return any(
        work.busy >= (MOMENT if work.total is None else CYCLES)
        for engine, work in works.items()
        if engine not in DRAWING
    )


def _texts(home: str) -> collections.abc.Iterator[tuple[str, str]]:
    """The name and the text of each GPU's node that a process has open."""
    for name in _names(f'{home}/fd'):
        try:
            node = os.readlink(f'{home}/fd/{name}')
            # A container may have the node by another name in /dev.
            if node.startswith('/dev/'):
                with open(f'{home}/fdinfo/{name}', 'rb') as file:
                    text = file.read(TEXT).decode(errors='replace')
                if node.startswith('/dev/dri/') or DRIVER.search(text):
                    yield node.rpartition('/')[2], text
        except OSError:
            # It was closed, or the process has ended, or is of another user.
            continue


def _names(place: str | pathlib.Path) -> list[str]:
    try:
        return os.listdir(place)
    except OSError:
        return []
