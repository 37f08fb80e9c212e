# SPDX-License-Identifier: Apache-2.0
"""Devices: accelerator cards."""

from __future__ import annotations

import collections.abc
import contextlib
import datetime
import functools
import json
import typing

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite.model import base
from cyborg_lite.model import health as healths
from cyborg_lite.model import pci

if typing.TYPE_CHECKING:
    from cyborg_lite.model.deployable import Deployable
    from cyborg_lite.model.host import Host


#: The ids by which users of a vendor's software call a card or a chip of it.
NAMES = 'chip_id', 'index', 'logic_id', 'module_id', 'npu_id', 'phy_id', 'uuid'
#: The keys of a vendor's board that are ids, with the numbers of nodes in /dev; parts of a board
#: have their own.
IDS = {
    *NAMES, 'bdev', 'minor', 'render_minor', 'gpu_instance_minor', 'compute_instance_minor',
    'vfio_group', 'vfio_device',
}  # fmt: skip


@functools.lru_cache(4096)
def _canonical(text: str | None) -> str:
    """A JSON object in its canonical form; empty for null.

    The result is cached: a list shows two for each device, and most repeat.
    """
    return base.as_text(json.loads(text or 'null') or {})


class Device(base.Base):
    """A physical accelerator card, or the PCI function that represents it, in a host."""

    __tablename__ = 'devices'
    parts = ('deployables',)
    #: The effects of a fault by their columns: no new allocations, or a notification of holders.
    EFFECTS: typing.ClassVar = {'withheld': 'no_new', 'alerted': 'tell'}
    #: How many of the last changes of its health are stored.
    REMEMBERED: typing.ClassVar = 32

    type: orm.Mapped[str] = base.fact(
        sa.String(32), doc='The kind of device: GPU, FPGA, AICHIP, QAT, NIC, SSD, PCI and so on.'
    )
    vendor: orm.Mapped[str] = base.fact(
        sa.String(255), doc='The vendor; for a PCI device its vendor id, four hexadecimal digits.'
    )
    model: orm.Mapped[str] = base.fact(sa.String(255), doc='The name of the model.')
    address: orm.Mapped[str] = base.fact(
        sa.String(255), hidden=True, doc='Where the host has the device: for PCI DDDD:BB:DD.F.'
    )
    numa_node: orm.Mapped[int | None] = base.fact(
        sa.Integer, hidden=True, doc='The NUMA node of the device; null if it is unknown.'
    )
    # The serial number or UUID of the card, independent of its host; null if unknown.
    serial: orm.Mapped[str | None] = base.fact(sa.String(255), hidden=True)
    # Why the card must not be allocated now, as a text; null if it may be.
    unusable: orm.Mapped[str | None] = base.fact(sa.String(255), hidden=True)
    # The processes that use the card without a lease, as a text; null if there are none.
    rogue: orm.Mapped[str | None] = base.fact(sa.String(255), hidden=True)
    # The boot of its host and the last report before an allocation left it, as BOOT SEQUENCE, until
    # its host has looked who has it open: see cyborg_lite.conductor.leaving.
    left_after: orm.Mapped[str | None] = base.own(sa.String(64), hidden=True)
    # Since when it has told in every look that it does no work; null unless that has been so for
    # long: see Host.idle_after.
    idle_since: orm.Mapped[datetime.datetime | None] = base.fact(base.Moment, hidden=True)
    # Whether a process uses a card that does no work; null if that is unknown.
    used: orm.Mapped[bool | None] = base.fact(sa.Boolean, hidden=True)
    # The health and its reason in the last report: see cyborg_lite.model.health.
    health: orm.Mapped[str] = base.fact(
        sa.String(16), server_default=healths.UNKNOWN, default=healths.UNKNOWN, hidden=True
    )
    health_reason: orm.Mapped[str | None] = base.fact(sa.String(healths.LONGEST), hidden=True)
    board: orm.Mapped[dict[str, typing.Any] | None] = base.fact(sa.JSON, hidden=True)
    vendor_board: orm.Mapped[dict[str, typing.Any] | None] = base.fact(sa.JSON, hidden=True)
    # What tells how near it is to other devices of its host; null if nothing is known.
    # ``bridges``: the addresses of the PCI bridges above it, that of the root port first.
    # ``links``: the number of direct links (HCCS, NVLink, xGMI) to the device at each address.
    # Either may be absent.
    topology: orm.Mapped[dict[str, typing.Any] | None] = base.fact(
        sa.JSON(none_as_null=True), hidden=True
    )
    hostname: orm.Mapped[str] = base.link(
        'hosts.name', hidden=False, doc='The host that the device is in.'
    )
    status: orm.Mapped[str] = base.own(
        sa.String(16),
        default='enabled',
        since='2.3',
        doc='``enabled``, or ``maintaining`` while the device is disabled.',
    )
    # Counts the calls that enable or disable it: a stale call changes nothing.
    revision: orm.Mapped[int] = base.own(sa.Integer, server_default='0', default=0, hidden=True)
    # The time of the last change of health or reason; null before the first report of them.
    health_since: orm.Mapped[datetime.datetime | None] = base.own(base.Moment, hidden=True)
    # How many samples in a row were worse, or if below 0 better, than the health in force.
    streak: orm.Mapped[int] = base.own(sa.Integer, server_default='0', default=0, hidden=True)
    # Of these samples the last of those whose effects are nearest to those in force, and how many
    # have come after it.
    nearest: orm.Mapped[str | None] = base.own(sa.String(96), hidden=True)
    further: orm.Mapped[int] = base.own(sa.Integer, server_default='0', default=0, hidden=True)
    # The health in force, and its effects: no new allocations, and notification of holders. See
    # cyborg_lite.conductor.health.
    fault: orm.Mapped[str | None] = base.own(sa.String(96), hidden=True)
    withheld: orm.Mapped[bool] = base.own(
        sa.Boolean, server_default=sa.false(), default=False, hidden=True
    )
    alerted: orm.Mapped[bool] = base.own(
        sa.Boolean, server_default=sa.false(), default=False, hidden=True
    )
    # The last changes of health and effects, the oldest first.
    changes: orm.Mapped[list[dict[str, typing.Any]] | None] = base.own(
        sa.JSON(none_as_null=True), hidden=True, deferred=True
    )
    # The number of reports in a row that lacked the device.
    absences: orm.Mapped[int] = base.own(sa.Integer, default=0, hidden=True)

    #: The pids of the processes that compute on it, as its driver lists them in a scan; None if it
    #: does not.  They are not reported, and not stored.
    processes = typing.cast('frozenset[int] | None', None)
    #: How much of its memory each process has, in MiB, by its pid, as its driver tells it in a
    #: scan; None if it does not.  It differs in each scan, so it is not reported, and not stored.
    memory = typing.cast('dict[int, int] | None', None)
    #: How busy it was in a scan, in percent; None if it does not tell.  It is not reported, and not
    #: stored.
    utilization = typing.cast('int | None', None)

    host: orm.Mapped[Host] = orm.relationship(back_populates='found')
    deployables: orm.Mapped[list[Deployable]] = base.parts('Deployable', parent='device')

    # The stored texts: parsing and encoding them takes half of the time of a list.
    board_text: orm.Mapped[str | None] = orm.column_property(sa.cast(board, sa.Text), deferred=True)
    vendor_board_text: orm.Mapped[str | None] = orm.column_property(
        sa.cast(vendor_board, sa.Text), deferred=True
    )

    std_board_info = base.shown(
        str,
        'board_text',
        make=_canonical,
        doc='Facts that all boards of this kind have: a JSON object, as text.',
    )
    vendor_board_info = base.shown(
        str,
        'vendor_board_text',
        make=_canonical,
        doc='Facts that only boards of this vendor have: a JSON object, as text.',
    )

    def __init__(self, **values: typing.Any) -> None:
        # Most drivers, and agents of the previous release, do not set it.
        super().__init__(**({'health': healths.UNKNOWN} | values))

    def facts(self) -> base.Facts:
        return super().facts() | {'idle_since': self.idle_since and base.iso(self.idle_since)}

    @classmethod
    def from_facts(cls, facts: base.Facts) -> typing.Self:
        row = super().from_facts(facts)
        if isinstance(row.idle_since, str):
            # Another text stays, for the contract to complain of it.
            with contextlib.suppress(ValueError, OverflowError):
                told = datetime.datetime.fromisoformat(row.idle_since).astimezone(datetime.UTC)
                # The clock of the host may be fast.
                row.idle_since = min(told.replace(tzinfo=None), timeutils.utcnow())
        return row

    @property
    def identity(self) -> str:
        """The address in canonical form: older releases stored other spellings."""
        return pci.canonical_address(self.address)

    @property
    def effects(self) -> list[str]:
        """The effects in force, sorted."""
        return [effect for column, effect in self.EFFECTS.items() if getattr(self, column)]

    @property
    def product(self) -> str | None:
        """The product id; None if it is unknown, or does not identify the card."""
        return self._told('product_id')

    @property
    def subsystem(self) -> str | None:
        """The ids of the subsystem, as the product id: an A2 and an A16 differ only by them."""
        return self._told('subsystem')

    def _told(self, key: str) -> str | None:
        # The ids of an FPGA change with its image.
        known = None if self.type == 'FPGA' else (self.board or {}).get(key)
        return str(known).lower().removeprefix('0x') if known else None

    def may_be(self, other: Device) -> bool:
        """Whether two reports of one address can be of one card, by vendor, product and subsystem.

        What a report lacks says nothing: an agent of the release before has no subsystem.
        """
        if self.vendor.lower().removeprefix('0x') != other.vendor.lower().removeprefix('0x'):
            return False
        pairs = (self.product, other.product), (self.subsystem, other.subsystem)
        return all(one == two or None in (one, two) for one, two in pairs)

    @property
    def ids(self) -> dict[str, typing.Any]:
        """The known ids of the card in the vendor's software."""
        return ids(self.vendor_board or {})

    @property
    def obstacle(self) -> str | None:
        """All reasons why accelerators of this device must not be allocated, or None."""
        return AND.join(each.words(self, self.host) for each in self._obstacles()) or None

    @property
    def allocatable(self) -> bool:
        """Whether accelerators of this device may be allocated, as far as the device decides."""
        return not any(True for _ in self._obstacles())

    def _obstacles(self) -> collections.abc.Iterator[Obstacle]:
        return (each for each in OBSTACLES if each.holds(self, self.host))


def ids(facts: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """The ids among the facts of a board, or of a part of one."""
    lists = {
        name: [ids(each) for each in value if isinstance(each, dict)]
        for name, value in facts.items()
        if isinstance(value, list)
    }
    found = {name: value for name, value in facts.items() if name in IDS}
    return found | {name: parts for name, parts in lists.items() if any(parts)}


def ids_of_part(
    board: dict[str, typing.Any] | None, attach_info: dict[str, str]
) -> dict[str, typing.Any]:
    """The ids of one attach handle: its own if it has any, otherwise its card's.

    The board's facts of a part with the same UUID belong to it, and the VFIO nodes of its function.
    """
    told, own = ids(board or {}) | _vfio(board, attach_info), ids(attach_info)
    parts = (part for value in told.values() if isinstance(value, list) for part in value)
    same = (part for part in parts if 'uuid' in own and part.get('uuid') == own['uuid'])
    return own | next(same, {}) if own else told


def _vfio(
    board: dict[str, typing.Any] | None, attach_info: dict[str, str]
) -> dict[str, typing.Any]:
    """The numbers of the nodes of a function that VFIO is bound to: see sysfs.Function.vfio."""
    told = (board or {}).get('vfio')
    if not isinstance(told, dict) or pci.function(attach_info) is None:
        return {}
    numbers = told.get('{domain}:{bus}:{device}.{function}'.format(**attach_info))
    names = 'vfio_group', 'vfio_device'
    return dict(zip(names, numbers, strict=False)) if isinstance(numbers, list) else {}


class Obstacle(typing.NamedTuple):
    """A reason not to allocate accelerators of a device.

    Both functions take a device and its host: rows, or the two classes to make SQL.
    """

    #: the state of the accelerators of such a device
    state: str
    holds: collections.abc.Callable[[typing.Any, typing.Any], typing.Any]
    words: collections.abc.Callable[[typing.Any, typing.Any], typing.Any]


#: The separator between the texts of two obstacles.
AND = ' and '
#: The obstacles, in the order of their display.
OBSTACLES = (
    Obstacle(
        'disabled',
        lambda device, host: device.status != 'enabled',
        lambda device, host: 'is ' + device.status,
    ),
    Obstacle(
        'missing',
        lambda device, host: device.absences > 0,
        lambda device, host: 'is missing from its host',
    ),
    Obstacle(
        'unusable',
        lambda device, host: device.unusable != None,  # noqa: E711 - SQL, too
        lambda device, host: 'cannot be used: ' + device.unusable,
    ),
    Obstacle(
        'rogue',
        lambda device, host: device.rogue != None,  # noqa: E711 - SQL, too
        lambda device, host: 'is used without a lease by ' + device.rogue,
    ),
    Obstacle(
        'faulty',
        lambda device, host: device.withheld,
        lambda device, host: 'is faulty (' + device.fault + ')',
    ),
    Obstacle(
        'host down',
        lambda device, host: host.renamed_to != None,  # noqa: E711 - SQL, too
        lambda device, host: (
            'is in ' + device.hostname + ', which reports as ' + host.renamed_to + ' now'
        ),
    ),
    Obstacle(
        'host down',
        lambda device, host: host.silent,
        lambda device, host: 'is in ' + device.hostname + ', which is down',
    ),
)
