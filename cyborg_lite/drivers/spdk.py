# SPDX-License-Identifier: Apache-2.0
"""Block devices of an SPDK application on the host.

Source: SPDK, doc/jsonrpc.md, ``bdev_get_bdevs`` and ``spdk_get_version``; include/spdk/version.h.
"""

from __future__ import annotations

import collections
import re
import typing

from cyborg_lite import driver
from cyborg_lite.driver import jsonrpc
from cyborg_lite.driver import versions

#: The socket at which SPDK's applications listen by default.
SOCKET = '/var/tmp/spdk.sock'  # noqa: S108 # nosec B108 - the user of the peer is checked
METHOD = 'bdev_get_bdevs'
VERSION = 'spdk_get_version'
#: The maximum number of block devices that are read.
MOST = 1024
NAME = re.compile('[!-~][ -~]{0,99}')
#: ``SPDK v24.09.1-pre git sha1 1c92f8d``
RELEASE = re.compile(
    r'(?:SPDK v)?([0-9]{2}\.[0-9]{2}[\w.-]{0,32})(?: git sha1 \w{1,40})?', re.ASCII
)
UUID = re.compile('[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}')


class Spdk(driver.Driver):
    """Each block device is a device with one accelerator."""

    name = 'spdk'

    def discover(self) -> list[driver.Device]:
        path = getattr(getattr(self.conf, 'agent', None), 'spdk_socket', None) or SOCKET
        told = self.host.ask('spdk', METHOD, lambda: jsonrpc.call(path, METHOD))
        # A recording has another answer than none if SPDK was there.
        if not isinstance(told, list) and (told is not None or self._is_recorded()):
            self.note(f'{METHOD} is not answered by a list', complete=False)
        listed = told[:MOST] if isinstance(told, list) else []
        named = [each for each in listed if isinstance(each, dict) and _text(each, 'name', NAME)]
        version = self._version(path) if named else None
        found = {each['name']: _device(each, path, version) for each in named}
        # A UUID that several have identifies none.
        uuids = collections.Counter(device.serial for device in found.values())
        for device in found.values():
            device.serial = device.serial if uuids[device.serial] == 1 else None
        return [found[name] for name in sorted(found)]

    def _version(self, path: str) -> str | None:
        """The version of the application, as it writes it; None if it tells none."""
        try:
            told = self.host.ask('spdk', VERSION, lambda: jsonrpc.call(path, VERSION))
        except driver.ToolError as error:
            self.note(error)
            return None
        return _text(told, 'version', RELEASE) if isinstance(told, dict) else None

    def _is_recorded(self) -> bool:
        return self.host.recorded and self.host.run('spdk', METHOD) is not None


def _text(told: dict[str, typing.Any], key: str, form: re.Pattern[str]) -> str | None:
    """A value, if it is a text of this form."""
    value = told.get(key)
    return value if isinstance(value, str) and form.fullmatch(value) else None


def _device(bdev: dict[str, typing.Any], path: str, version: str | None) -> driver.Device:
    """The Device of a block device, whose name is valid."""
    release = RELEASE.fullmatch(version or '')
    name, product = bdev['name'], _text(bdev, 'product_name', NAME)
    blocks, size, node = (
        bdev[key] if type(bdev.get(key)) is int and 0 <= bdev[key] < 1 << 63 else None
        for key in ('num_blocks', 'block_size', 'numa_id')
    )
    model = f'SPDK {product or "block device"}'
    deployable = driver.Deployable(
        name=f'spdk_{name}',
        driver_name=Spdk.name,
        resource_class='CUSTOM_SPDK_BDEV',
        traits=[
            *filter(None, [driver.trait(*model.split())]),
            *versions.traits(Spdk.name, {'runtime': release[1]} if release else {}),
        ],
        attach_handles=[
            driver.AttachHandle(
                attach_type='SPDK', attach_info={'bdev': name, 'socket': path}, form='bdev'
            )
        ],
    )
    facts = {'name': name, 'blocks': blocks, 'block_size': size, 'runtime_version': version}
    return driver.Device(
        type='SSD',
        vendor='spdk',
        model=model,
        address=f'spdk:{name}',
        numa_node=node if node is not None and node < 65536 else None,
        serial=_text(bdev, 'uuid', UUID),
        # A claim is by a part of SPDK, such as a volume or a target.
        unusable='SPDK uses it itself: it is claimed' if bdev.get('claimed') else None,
        vendor_board={key: value for key, value in facts.items() if value is not None},
        deployables=[deployable],
    )
