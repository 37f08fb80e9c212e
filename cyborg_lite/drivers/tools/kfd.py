# SPDX-License-Identifier: Apache-2.0
"""The processes that compute on AMD GPUs, as the kernel's compute driver (KFD) lists them.

An open node proves nothing: the runtime of ROCm has the nodes of all GPUs open in each process,
and KFD lists each of these as a process of all GPUs.  One that computes on a GPU, or copies to it,
has a queue there.

Source: Linux, drivers/gpu/drm/amd/amdkfd/kfd_process.c, kfd_procfs_add_queue; ROCm, libhsakmt,
hsakmt_fmm_init_process_apertures.
"""

from __future__ import annotations

import collections
import collections.abc
import itertools
import pathlib
import re
import typing

from cyborg_lite import driver
from cyborg_lite.driver import pids
from cyborg_lite.driver import sysfs

#: One directory for each process, by its pid in the first pid namespace.
PROCESSES = pathlib.PurePath('sys/class/kfd/kfd/proc')
#: A pid.
PID = re.compile('[0-9]{1,7}')
#: The ``gpu_id`` of a GPU.
GPU = re.compile('[0-9]{1,10}')
#: A further context of a process, which has queues of its own.
CONTEXT = re.compile('context_[0-9]{1,10}')
#: The maximum number of queues of a process that are looked at.
QUEUES = 4096


def ask(host: driver.Host) -> dict[int, frozenset[int]] | None:
    """The pids of the processes with a queue, by the ``gpu_id`` of its GPU; None if unknown.

    :raises ToolError: when a test sets it.
    """
    told = host.ask('kfd', 'queues', lambda: _read(host.tree))
    if not isinstance(told, dict):
        return None
    return {int(gpu): pids.of(each) for gpu, each in told.items() if GPU.fullmatch(gpu)}


def _read(tree: sysfs.Tree) -> dict[str, typing.Any] | None:
    """The pids by GPU; None without KFD, or where its pids are not those of /proc."""
    home = tree.inside(tree.root / PROCESSES)
    if home is None or not pids.are_global():
        return None
    found: dict[str, set[int]] = collections.defaultdict(set)
    for name in filter(PID.fullmatch, tree.names(home)):
        for gpu in itertools.islice(_gpus(tree, home / name), QUEUES):
            found[gpu].add(int(name))
    return {gpu: {'pids': sorted(listed)} for gpu, listed in sorted(found.items())}


def _gpus(tree: sysfs.Tree, home: pathlib.Path) -> collections.abc.Iterator[str]:
    """The GPU of each queue of a process."""
    contexts = filter(CONTEXT.fullmatch, tree.names(home))
    for place in (home, *(home / name for name in contexts)):
        for queue in tree.names(place / 'queues'):
            content = tree.load(place / 'queues' / queue / 'gpuid', sysfs.LIMIT) or b''
            text = content.decode('ascii', 'replace').strip()
            if GPU.fullmatch(text):
                yield text
