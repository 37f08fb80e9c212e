# SPDX-License-Identifier: Apache-2.0
"""What a choice of accelerators costs among few free ones, and among many."""

from __future__ import annotations

import collections.abc
import pathlib
import typing

from oslo_utils import uuidutils
import sqlalchemy as sa

from cyborg_lite import model
from cyborg_lite.conductor import allocating
from cyborg_lite.conductor import choosing
from cyborg_lite.conductor import placing
from tests import support
from tests.bench import alone
from tests.bench import measure
from tests.bench.measure import Figure

#: How many accelerators are free, on hosts of so many cards.
FEW, MANY, CARDS = 10_000, 100_000, 8
#: How much longer a choice among MANY may take, and how many statements.
LONGER, STATEMENTS = 2, 3
#: The tables of what a host reports, each after those that it links to.
TABLES = (
    model.Host, model.Device, model.Deployable, model.AttachHandle, model.Attribute,
)  # fmt: skip

#: What the rows of each host have of their own, and between which ids those of a host are.
IDS, UUIDS, NAMES = ('id', 'device_id', 'deployable_id'), ('uuid', 'rp_uuid'), ('name', 'hostname')
STRIDE = 1000
REQUEST: allocating.Request = {
    'profile': None, 'alternatives': [[{'resources:FPGA': '1'}]], 'same_host': True,
    'same_numa': 'prefer', 'hosts': None,
}  # fmt: skip


def figures(place: pathlib.Path) -> collections.abc.Iterator[Figure]:
    few, _ = _cost(place, FEW)
    yield Figure(f'choice among {FEW:,} free accelerators, CPU', few, 'ms')
    many, statements = _cost(place, MANY)
    aim = round(LONGER * few, 2)
    yield Figure(f'choice among {MANY:,} free accelerators, CPU', many, 'ms', aim)
    yield Figure('the same, SQL statements', statements, '', STATEMENTS)


def _cost(place: pathlib.Path, free: int) -> tuple[float, int]:
    """The CPU time of a choice of one accelerator, in milliseconds, and its statements."""
    rank = placing.policy('binpack')
    with alone.opened(place / f'free-{free}') as service:
        _fill(service, free)
        with service.database.reader() as session:
            wanted, kinds = allocating.wanted_of(session, REQUEST)

        def choose() -> None:
            with service.database.reader() as session:
                chooser = choosing.Chooser(session, 'p', wanted, kinds, None, None, rank)
                assert chooser.choose().found

        work = measure.cpu(choose, 50)
        with service.statements(but='outbox') as statements:
            choose()
    return work, len([each for each in statements if not each.startswith('BEGIN')])


def _fill(service: support.Service, free: int) -> None:
    """Copy what a host reports: so many reports would take minutes."""
    service.report(*(support.card(f'{bus:02x}') for bus in range(CARDS)))
    first = {kind: _rows(service, kind) for kind in TABLES}
    for kind in TABLES:
        copies = (_copy(row, n) for n in range(1, free // CARDS) for row in first[kind])
        with service.database.writer() as session:
            session.execute(sa.insert(kind), list(copies))


def _rows(service: support.Service, kind: type[model.Base]) -> list[dict[str, typing.Any]]:
    with service.database.reader() as session:
        return [dict(row) for row in session.execute(sa.select(kind.__table__)).mappings()]


def _copy(row: dict[str, typing.Any], number: int) -> dict[str, typing.Any]:
    """The row of another host: with ids, uuids and names of its own."""
    ids = {name: row[name] + STRIDE * number for name in IDS if name in row}
    uuids = {name: uuidutils.generate_uuid() for name in UUIDS if name in row}
    names = {name: f'{row[name]}-{number}' for name in NAMES if name in row}
    return row | ids | uuids | names
