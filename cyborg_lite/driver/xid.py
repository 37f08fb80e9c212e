# SPDX-License-Identifier: Apache-2.0
"""The errors of NVIDIA's GPUs that their kernel driver writes into the log of the kernel: XIDs.

The log is read whole in each scan: NVML tells of an error only to a process that waits for it, and
a driver whose library is in use cannot be loaded again.

Source: NVIDIA, "Analyzing Xid Errors with the Xid Catalog"
(docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html); the kernel's documentation, "ABI:
dev-kmsg".
"""

from __future__ import annotations

import collections.abc
import os
import pathlib
import re
import time
import typing

from cyborg_lite.driver import sysfs

#: The device of the log; in a container another one may have its name.
DEVICE = os.makedev(1, 11)
#: The maximum number of records that are read, and of bytes in each.
#: Source: Linux, kernel/printk, CONSOLE_EXT_LOG_MAX.
RECORDS, RECORD = 1 << 16, 8192
#: How long an error is remembered, in seconds.
REMEMBERED = 3600

#: ``4,812,6123456,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=..., GPU has fallen off the bus.``
#: The priority has the facility of the kernel, 0: what processes write has another one.
#: An error of NVLink may be ``145, RLW_REMAP Nonfatal``, and 154 tells also that nothing has to be
#: done any more: ``recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)``.
MESSAGE = re.compile(
    rb'[0-7],[0-9]{1,20},([0-9]{1,20}),[^;]{0,64};'
    rb'NVRM: Xid \(PCI:([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})(?:\.0)?\): ([0-9]{1,4}),'
    rb'(?! [A-Z0-9_/]{1,64} +Nonfatal )'
    rb'(?! GPU recovery action changed from 0x[0-9a-f]{1,8} \([^)]{0,64}\) to 0x0 )'
)


def recent(log: pathlib.Path) -> dict[str, list[int]] | None:
    """The numbers of the errors of the last hour by the address of the GPU; None if unknown.

    :param log: the device of the log; it can be read by root, and by others if
        kernel.dmesg_restrict is 0.
    """
    try:
        descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_rdev != DEVICE:
            return None
        return parse(_records(descriptor), time.clock_gettime(time.CLOCK_MONOTONIC))
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _records(descriptor: int) -> collections.abc.Iterator[bytes]:
    """The records of the log, of which each read returns one."""
    for _ in range(RECORDS):
        try:
            record = os.read(descriptor, RECORD)
        except BlockingIOError:
            return
        except BrokenPipeError:  # records were overwritten: the next read goes on after them
            continue
        if not record:
            return
        yield record


def parse(records: collections.abc.Iterable[bytes], now: float) -> dict[str, list[int]]:
    """The numbers of the errors of the last hour by the address of the GPU, each once.

    :param now: the time since the boot, in seconds.
    """
    found: dict[str, set[int]] = {}
    for record in records:
        if match := MESSAGE.match(record):
            address = sysfs.normal(f'{match[2].decode()}.0')
            if address and now - int(match[1]) / 1e6 <= REMEMBERED:
                found.setdefault(address, set()).add(int(match[3]))
    return {address: sorted(numbers) for address, numbers in found.items()}


def of(told: typing.Any, address: str) -> list[int]:
    """The valid numbers of a GPU in an answer: a recording may hold anything."""
    numbers = told.get(address) if isinstance(told, dict) else None
    return [n for n in numbers if type(n) is int] if isinstance(numbers, list) else []
