# SPDX-License-Identifier: Apache-2.0
"""The names of PCI devices from pci.ids, if the host has that file.

Source: pci.ids of pciutils.  A vendor's line is followed by a line for each of its devices, which
begins with one tab.  Distributions have the file in one of two places.
"""

from __future__ import annotations

import functools
import pathlib
import re

from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import sysfs

PLACES = (
    pathlib.PurePath('usr/share/misc/pci.ids'),
    pathlib.PurePath('usr/share/hwdata/pci.ids'),
)
#: The maximum size of the file, in bytes; it has 1.6 MB in 2026.
LIMIT = 1 << 23
#: The longest name that is used, in characters.
LONGEST = 128
#: ``GH100 [H100 PCIe]``: the chip, and the product name of a card with it.
SOLD_AS = re.compile(r'[^\[]*\[([^\[\]]+)\]\s*')


def product(host: hosts.Host, ids: tuple[str, str]) -> str | None:
    """The name of a device, by vendor and device id; None if the host does not know it.

    A recording keeps the names of its devices as answers: the file is long.  A damaged file only
    loses names.
    """
    try:
        told = host.ask('pci.ids', ' '.join(ids), lambda: _read(host.tree, ids))
    except hosts.ToolError:
        return None
    # A recording that was made by hand may have the file.
    told = told or (_read(host.tree, ids) if host.recorded else None)
    return told if isinstance(told, str) and _is_name(told) else None


# Cached: each scan needs the same few names.
@functools.lru_cache(maxsize=256)
def _read(tree: sysfs.Tree, ids: tuple[str, str]) -> str | None:
    for place in PLACES:
        content = tree.load(tree.root / place, LIMIT)
        name = _find(content.decode('utf-8', 'replace'), *ids) if content else None
        if name:
            return name
    return None


def _find(text: str, vendor: str, device: str) -> str | None:
    of_vendor = re.search(rf'^{re.escape(vendor)}  .*\n((?:[\t#].*\n|\n)*)', text, re.MULTILINE)
    found = of_vendor and re.search(rf'^\t{re.escape(device)}  (.*)$', of_vendor[1], re.MULTILINE)
    if not found:
        return None
    sold_as = SOLD_AS.fullmatch(found[1])
    name = (sold_as[1] if sold_as else found[1]).strip()
    return name if _is_name(name) else None


def _is_name(text: str) -> bool:
    return 0 < len(text) <= LONGEST and text.isprintable()
