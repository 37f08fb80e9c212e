# SPDX-License-Identifier: Apache-2.0
"""Accelerators in the form that an allocation stores."""

from __future__ import annotations

import typing
import uuid

from cyborg_lite import driver
from cyborg_lite.driver import testing
from cyborg_lite.model import device as devices

ALLOCATION = '7c2e4a10-0000-4000-8000-000000000001'
HOST = 'host-1'


def noted(kind: type[driver.Driver], host: driver.Host) -> list[dict[str, typing.Any]]:
    """All that a driver finds in a host."""
    return [
        accelerator(
            driver=kind.name,
            form=handle.form or handle.default_form,
            address=device.address,
            type=device.type,
            model=device.model,
            ids=devices.ids_of_part(device.vendor_board, handle.attach_info),
        )
        for device in testing.discover(kind, host)
        for part in device.deployables
        for handle in part.attach_handles
    ]


def accelerator(**more: typing.Any) -> dict[str, typing.Any]:
    """An accelerator of no known driver, with these facts."""
    facts = {
        'host': HOST, 'type': 'AICHIP', 'model': 'A card', 'address': '0000:0a:00.0',
        'numa_node': 0, 'driver': None, 'form': 'whole', 'ids': {},
    }  # fmt: skip
    facts |= more
    return {'uuid': str(uuid.uuid5(uuid.NAMESPACE_OID, repr(facts)))} | facts


def ascend(*numbers: int, **more: typing.Any) -> list[dict[str, typing.Any]]:
    """NPUs of these numbers."""
    return [
        accelerator(
            driver='huawei_ascend',
            address=f'0000:{99 - number:02d}:00.0',
            ids={'npu_id': number, 'chips': [{'chip_id': 0, 'logic_id': number}]},
            **more,
        )
        for number in numbers
    ]
