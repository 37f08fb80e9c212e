# SPDX-License-Identifier: Apache-2.0
"""The PCI functions of a host, from sysfs below any root.

The files of a host or a recorded tree are not trusted: a file may be endless, binary or not a
plain file, and a link may lead in a circle or out of the tree.  What cannot be read as expected
counts as absent, and nothing raises.

Source: Documentation/ABI/testing/sysfs-bus-pci and Documentation/PCI/sysfs-pci.rst of Linux.
"""

from __future__ import annotations

import collections.abc
import fnmatch
import functools
import itertools
import os
import pathlib
import re
import stat
import threading
import typing

#: A PCI address; domains are wider than 16 bits behind some controllers (VMD: 10000:00:02.0).
BDF = re.compile(
    r'(?P<domain>[0-9a-f]{4,8}):(?P<bus>[0-9a-f]{2}):(?P<device>[01][0-9a-f])\.(?P<function>[0-7])'
)
#: The directory in which the kernel lists the functions.
DEVICES = pathlib.PurePath('sys/bus/pci/devices')
#: The directories of classes of which each device has a link to its function.
CLASSES = tuple(
    pathlib.PurePath('sys/class', name)
    for name in ('accel', 'drm', 'fpga_region', 'habanalabs', 'net', 'nvme')
)
#: The names of kernel drivers for passthrough to guests, such as vfio-pci and mlx5_vfio_pci.
#: Source: drivers/vfio/pci and drivers/pci/pci-stub.c of Linux.
PASSED_THROUGH = re.compile(r'pci-stub|([\w-]*[_-])?vfio[_-]pci')
#: The maximum size of a file, in bytes: an attribute of sysfs has at most one page.
LIMIT = 4096
#: The maximum number of entries that are read of a directory.
ENTRIES = 65536
#: The maximum number of files, and of directories, whose reads a tree remembers.
READS = 10_000


def address(bdf: str) -> dict[str, str]:
    """The attach info of a PCI function: domain, bus, device and function, hexadecimal, no 0x.

    :raises ValueError: when the text is not a PCI address.
    """
    match = BDF.fullmatch(bdf)
    if not match:
        raise ValueError(f'{bdf[:64]!r} is not a PCI address (expected DDDD:BB:DD.F)')
    return match.groupdict()


def normal(text: str) -> str | None:
    """A PCI address in the form of sysfs, from that of tools (``00000000:C1:00.0``), or None."""
    match = BDF.fullmatch(text.strip().lower())
    return f'{int(match["domain"], 16):04x}{match[0][match.end("domain") :]}' if match else None


def _load(path: pathlib.Path, limit: int) -> bytes | None:
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, 'rb') as file:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            return file.read(limit) if regular else None
    except OSError:
        return None


def _decoded(content: bytes | None) -> str | None:
    text = (content or b'\xff').decode('ascii', 'replace').strip()
    printable = text.translate({ord('\n'): None, ord('\t'): None}).isprintable()
    return text if printable and '\ufffd' not in text else None


def _number(text: str | None, digits: int = 20) -> int | None:
    return int(text) if text and re.fullmatch(f'[0-9]{{1,{digits}}}', text) else None


class Tree:
    """The files below one root: a driver may read nothing else of a host."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = pathlib.Path(os.path.realpath(root))
        #: The reads, for a recording: files and directories below the root, and the names of
        #: attributes, which it keeps of all functions.
        self.read: set[pathlib.PurePath] = set()
        self.listed: set[pathlib.PurePath] = set()
        self.attributes: set[str] = set()
        # The functions of the last scan; None before the first one.
        self._scan: list[Function] | None = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Begin a scan: its drivers share the functions, with their ids and classes.

        Each of them looks at all functions, of which it knows a few.
        """
        self._scan = []

    def inside(self, path: pathlib.Path) -> pathlib.Path | None:
        """The real path, if it exists and is below the root."""
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            return None
        return real if real.is_relative_to(self.root) else None

    def load(self, path: pathlib.Path, limit: int) -> bytes | None:
        """At most so many bytes of a regular file; None for all else."""
        real = self.inside(path)
        return _load(real, limit) if real else None

    def text(self, path: str | pathlib.PurePath) -> str | None:
        """The text of a small file below the root, stripped; None if it is absent or not text.

        :param path: relative to the root, such as ``sys/class/accel/accel0/dev``
        """
        place = pathlib.PurePath(path)
        self._note(self.read, place)
        return _decoded(self.load(self.root / place, LIMIT))

    def number(self, path: str | pathlib.PurePath) -> int | None:
        """The number of up to 20 digits in a small file; None if there is none."""
        return _number(self.text(path))

    def numbers(self, path: str | pathlib.PurePath) -> dict[str, int]:
        """The numbers in a file of lines ``key value``; lines of another form are left out."""
        lines = (self.text(path) or '').split('\n')
        found = (re.fullmatch(r'(\w{1,64})[ \t]+([0-9]{1,20})', line, re.ASCII) for line in lines)
        return {match[1]: int(match[2]) for match in found if match}

    def entries(self, path: str | pathlib.PurePath) -> list[str]:
        """The names in a directory below the root, sorted; empty if there is no directory.

        :param path: relative to the root
        """
        place = pathlib.PurePath(path)
        self._note(self.listed, place)
        return self.names(self.root / place)

    def asked(self, attribute: str) -> None:
        """Remember that an attribute of a function was read."""
        self._note(self.attributes, attribute)

    def _note(self, places: set[typing.Any], place: pathlib.PurePath | str) -> None:
        if len(places) < READS:
            places.add(place)

    def names(self, path: pathlib.Path) -> list[str]:
        """The names in a directory, sorted; empty if there is no directory."""
        real = self.inside(path)
        if real is None:
            return []
        try:
            with os.scandir(real) as entries:
                return sorted(e.name for e in itertools.islice(entries, ENTRIES))
        except OSError:
            return []

    def functions(self) -> list[Function]:
        """All PCI functions, in order of their addresses.

        Where the bus is not shown, as in a container, they are those of the devices of classes.
        """
        scan = self._scan
        with self._lock:
            if scan:
                return [*scan]
            listed = map(self.function, self.names(self.root / DEVICES))
            found = [function for function in listed if function] or self._of_classes()
            if scan is not None:
                scan.extend(found)
            return found

    def _of_classes(self) -> list[Function]:
        """The functions of the devices of classes, if the bus is not shown."""
        if self.inside(self.root / DEVICES):
            return []
        links = (
            home / name / 'device' for home in CLASSES for name in self.names(self.root / home)
        )
        places = {real for link in links if (real := self.inside(self.root / link))}
        known = {place.name: place for place in places if BDF.fullmatch(place.name)}
        return [Function(self, known[bdf], bdf) for bdf in sorted(known)]

    def function(self, bdf: str) -> Function | None:
        """The function at an address; None if there is none."""
        real = self.inside(self.root / DEVICES / bdf) if BDF.fullmatch(bdf) else None
        return Function(self, real, bdf) if real else None


class Function:
    """One PCI function, physical or virtual, as one scan sees it: the next one makes another.

    Its path has no links.
    """

    def __init__(self, tree: Tree, path: pathlib.Path, bdf: str) -> None:
        self.tree = tree
        self.path = path
        self.bdf = bdf

    def read(self, name: str) -> str | None:
        """The text of an attribute, stripped; None if it is absent or not text."""
        self.tree.asked(name)
        path = self.path / name
        # An attribute is not a link: only paths with directories must be resolved.
        return _decoded(self.tree.load(path, LIMIT) if '/' in name else _load(path, LIMIT))

    def entries(self, name: str) -> list[str]:
        """The names in a directory of the function, sorted; empty if there is no directory."""
        return self.tree.entries(self.path.relative_to(self.tree.root) / name)

    def find(self, *patterns: str) -> str | None:
        """The first path below the function that matches, such as ``nvme/nvme*/model``.

        ``*`` stands for any characters of one name.  A last name without it need not exist.
        """
        return next(self._matching(patterns), None)

    def told(self, *patterns: str) -> str | None:
        """The text of the first attribute that matches and has one: see :meth:`find`."""
        texts = map(self.read, self._matching(patterns))
        return next((text for text in texts if text), None)

    def _matching(self, patterns: tuple[str, ...]) -> collections.abc.Iterator[str]:
        for pattern in patterns:
            yield from self._matches('', pattern.split('/'))

    def _matches(self, place: str, parts: list[str]) -> collections.abc.Iterator[str]:
        """The paths that match the parts, below a place."""
        if not parts:
            yield place
            return
        names = [parts[0]]
        if '*' in parts[0]:
            # A recording need not have all names in the directory of the function itself.
            known = self.entries(place) if place else self.tree.names(self.path)
            # Only * has a meaning.
            names = fnmatch.filter(known, parts[0].replace('[', '[[]'))
        for name in names:
            yield from self._matches(f'{place}/{name}' if place else name, parts[1:])

    def number(self, name: str) -> int | None:
        """The number of up to 20 digits in an attribute; None if there is none."""
        return _number(self.read(name))

    def _hex(self, name: str, digits: int) -> str:
        text = (self.read(name) or '').lower().removeprefix('0x')
        return text if re.fullmatch(f'[0-9a-f]{{{digits}}}', text) else ''

    def _number(self, name: str) -> int | None:
        return _number(self.read(name), 5)

    @functools.cached_property
    def ids(self) -> tuple[str, str]:
        """Vendor and device id, four hexadecimal digits each, in lower case; '' if unreadable."""
        return self._hex('vendor', 4), self._hex('device', 4)

    @functools.cached_property
    def pci_class(self) -> str:
        """Class, subclass and programming interface, six hexadecimal digits; '' if unreadable."""
        return self._hex('class', 6)

    @property
    def subsystem(self) -> str | None:
        """The ids of the subsystem, such as ``10de:14a9``; None if the card has none.

        Source: PCI Local Bus Specification 3.0, 6.2.4: a vendor id of 0 is none.
        """
        vendor, device = self.identity[2:]
        return f'{vendor}:{device}' if vendor.strip('0') and device else None

    @property
    def identity(self) -> tuple[str, ...]:
        """The ids and subsystem ids, which differ for a card of another kind."""
        subsystem = self._hex('subsystem_vendor', 4), self._hex('subsystem_device', 4)
        return *self.ids, *subsystem

    @property
    def bridges(self) -> list[str]:
        """The addresses of the PCI bridges above, that of the root port first.

        Two functions below one switch have their first bridges in common.
        """
        above = self.path.relative_to(self.tree.root).parts[:-1]
        return [name for name in above if BDF.fullmatch(name)]

    @property
    def numa_node(self) -> int | None:
        """The NUMA node; None if the kernel writes -1 or nothing."""
        return self._number('numa_node')

    @property
    def address(self) -> dict[str, str]:
        """The attach info: see :func:`address`."""
        return address(self.bdf)

    @functools.cached_property
    def is_virtual(self) -> bool:
        """Whether this is a virtual function of SR-IOV."""
        # A dangling link is sufficient: recorded trees lack the targets.
        return os.path.lexists(self.path / 'physfn')

    @functools.cached_property
    def numvfs(self) -> int:
        """How many virtual functions are enabled."""
        return self._number('sriov_numvfs') or 0

    @functools.cached_property
    def totalvfs(self) -> int | None:
        """The maximum number of virtual functions; None if the function cannot have any.

        A virtual function has no SR-IOV capability, and so does not have this file.
        """
        return self._number('sriov_totalvfs')

    @property
    def link_width(self) -> int | None:
        """The number of PCIe lanes in use; None if no link is up."""
        return self._lanes('current_link_width')

    @property
    def widest_link(self) -> int | None:
        """The maximum number of lanes of the function and of the port above; None if unknown.

        A slot with fewer lanes than the card limits the link.
        """
        widest = self._lanes('max_link_width')
        port = self.tree.function(self.path.parent.name)
        above = port and port._lanes('max_link_width')
        return min(widest, above) if widest and above else widest

    def _lanes(self, name: str) -> int | None:
        """A valid width of PCIe: 0 means no link, 63 and 255 mean unknown.

        Source: max_link_width_show() in drivers/pci/pci-sysfs.c of Linux; PCIe, Link Capabilities.
        """
        width = self.number(name)
        return width if width in (1, 2, 4, 8, 12, 16, 32) else None

    def link(self, name: str) -> str | None:
        """The last part of a link's target, which may not exist: recorded trees lack targets.

        ``driver`` names the bound driver, ``iommu_group`` the number of the group.
        """
        try:
            target = os.path.basename(os.readlink(self.path / name))
        except (OSError, ValueError):
            return None
        return target if re.fullmatch(r'\w[\w.+-]{0,63}', target, re.ASCII) else None

    @functools.cached_property
    def driver(self) -> str | None:
        """The kernel driver that is bound; None if there is none."""
        return self.link('driver')

    @property
    def passed_through(self) -> bool:
        """Whether it is kept for guests: the vendor's driver and tools do not see it."""
        return bool(PASSED_THROUGH.fullmatch(self.driver or ''))

    @property
    def is_gone(self) -> bool:
        """Whether it does not answer on its bus: all bits of its ids are read as ones.

        One that is kept for guests may sleep, and is not read.

        Source: pci_device_is_present() in drivers/pci/pci.c of Linux.
        """
        return not self.passed_through and _load(self.path / 'config', 4) == b'\xff' * 4

    @property
    def iommu_group(self) -> str | None:
        """The number of the IOMMU group; None without an IOMMU.

        Source: Documentation/ABI/testing/sysfs-kernel-iommu_groups of Linux.
        """
        group = self.link('iommu_group') or ''
        return group if re.fullmatch('[0-9]{1,9}', group) else None

    @property
    def vfio(self) -> list[int] | None:
        """The numbers of the nodes by which a process uses it: of vfio/N, then of
        vfio/devices/vfioN where the kernel has it; None unless VFIO is bound to it.

        Source: Documentation/driver-api/vfio.rst of Linux, and for the second
        Documentation/ABI/testing/sysfs-devices-vfio-dev: it has a number if it is a node.
        """
        group = self.iommu_group if 'vfio' in (self.driver or '') and self.passed_through else None
        if group is None:
            return None
        found = self._matching(('vfio-dev/vfio*/dev',))
        paths = (path for path in found if re.fullmatch('[0-9]+:[0-9]+', self.read(path) or ''))
        devices = (re.fullmatch('vfio-dev/vfio([0-9]{1,7})/dev', path) for path in paths)
        return [int(group), *(int(match[1]) for match in devices if match)][:2]

    @property
    def is_console(self) -> bool:
        """Whether this card shows the console of the firmware and the kernel.

        Source: boot_vga_show() in drivers/pci/pci-sysfs.c of Linux.
        """
        return self.read('boot_vga') == '1'

    @functools.cached_property
    def mediated_devices(self) -> list[str]:
        """The mediated devices that exist on this function, each ``type/name``.

        Source: Documentation/driver-api/vfio-mediated-device.rst of Linux.
        """
        types = self.path / 'mdev_supported_types'
        return [
            f'{kind}/{name}'
            for kind in self.tree.names(types)
            for name in self.tree.names(types / kind / 'devices')
        ]

    @functools.cached_property
    def routing_id(self) -> int:
        """Bus, device and function as one number; source: PCI Express, Routing ID."""
        part = self.address
        return int(part['bus'], 16) << 8 | int(part['device'], 16) << 3 | int(part['function'])

    @functools.cached_property
    def virtual_functions(self) -> list[Function]:
        """The virtual functions of this one, in order of their numbers."""
        # In a broken tree a link may lead to another card.
        return [function for function in self._linked if function.is_virtual]

    @functools.cached_property
    def _linked(self) -> list[Function]:
        """The targets of this function's links to its virtual functions."""
        links = [n for n in self.tree.names(self.path) if re.fullmatch('virtfn[0-9]{1,5}', n)]
        links.sort(key=lambda name: int(name[6:]))
        targets = (self.tree.inside(self.path / name) for name in links)
        return [
            Function(self.tree, target, target.name)
            for target in targets
            if target and BDF.fullmatch(target.name)
        ]

    def covered(self, others: collections.abc.Iterable[Function]) -> list[Function]:
        """Those of other functions that must be virtual functions of this one, linked or not.

        Either a link leads to one, or it has the address and the id of one.
        """
        linked = {function.bdf for function in self._linked}
        offset, stride = self._number('sriov_offset'), self._number('sriov_stride')
        numvfs, device = self.numvfs, self._virtual_id()
        most = max(self.totalvfs or 0, numvfs)
        domain = self.bdf.partition(':')[0]

        def is_covered(other: Function) -> bool:
            if other.bdf in linked:
                return True
            if other.bdf.partition(':')[0] != domain:
                return False
            distance = other.routing_id - self.routing_id
            if offset is None or stride is None:
                # Linux before 4.14 does not show their offset: while some are not linked, any
                # address on the bus may be one.
                return 0 < distance < 256 and numvfs > len(linked)
            # With one virtual function the stride may be 0.
            number, rest = divmod(distance - offset, stride or 1)
            return rest == 0 and 0 <= number < most and int(other.ids[1] or '0', 16) == device

        return [other for other in others if other is not self and is_covered(other)]

    def _virtual_id(self) -> int:
        """The device id of the virtual functions; source: sriov_vf_device_show() of Linux."""
        text = (self.read('sriov_vf_device') or '').lower().removeprefix('0x')
        return int(text, 16) if re.fullmatch('[0-9a-f]{1,4}', text) else -1


def unlinked(functions: list[Function]) -> dict[str, list[Function]]:
    """The virtual functions without a link, by the address of their physical function.

    The kernel adds a virtual function, then links ``virtfnN`` to it, then ``physfn`` back, and
    counts it in ``sriov_numvfs`` last; it removes them in the reverse order.  A scan in between
    sees a function that looks like a card of its own. Source: pci_iov_add_virtfn() and
    sriov_enable() in drivers/pci/iov.c of Linux.
    """
    # A function with the SR-IOV capability is not virtual.
    capable = [f for f in functions if f.totalvfs is not None or f.numvfs]
    loose = [f for f in functions if f.totalvfs is None and not f.is_virtual] if capable else []
    found = {card.bdf: card.covered(loose) for card in capable}
    return {bdf: virtual for bdf, virtual in found.items() if virtual}
