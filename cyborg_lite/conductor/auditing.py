# SPDX-License-Identifier: Apache-2.0
"""The audit: what the database, Nova and Placement hold, side by side, and to mend what differs.

An audit proves nothing by one look: a call may be under way.  What is mended was found twice, has
not moved in between, and is checked once more in the transaction that mends it.  What could not be
checked is left.
"""

from __future__ import annotations

import collections
import collections.abc
from concurrent import futures
import dataclasses
import typing

from keystoneauth1 import exceptions
from oslo_config import cfg
from oslo_db import api as db_api
from oslo_db import exception as db_exception
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import exc as orm_exception

from cyborg_lite import clients
from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.clients import placement
from cyborg_lite.conductor import binding
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import releasing
from cyborg_lite.db import engine

#: The kinds of findings.
INSTANCE = 'instance'
REQUEST = 'request'
DELETION = 'deletion'
ALLOCATION = 'allocation'
LEFTOVER = 'leftover'

#: The outcome of a finding that nothing is left of.
MENDED = 'mended'
#: How many questions are put to Nova or to Placement at once.
ASKED = 8
#: What removes what is left: "nova-manage placement audit" looks only at classes such as VCPU.
_UNSET = '"openstack resource provider allocation unset --provider <provider> {id}" removes them'
#: Why allocations without requests are left: a migration has allocations, too.
_MAY_MOVE = (
    'neither a request nor Placement says that the consumer was an instance, and not a migration; '
    + _UNSET
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that holds what it should not, or lacks what it should hold."""

    kind: str
    #: the uuid of the instance, of the request or of the allocation
    id: str
    problem: str
    #: the revision of each request, by its uuid
    requests: dict[str, int] = dataclasses.field(default_factory=dict)
    #: the uuids of the accelerators that the requests hold
    accelerators: list[str] = dataclasses.field(default_factory=list)
    #: what the instance has in Placement: amounts by resource class, by provider
    placement: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)


class Sighting(typing.NamedTuple):
    """What one look has found."""

    findings: list[Finding]
    #: what could not be checked, and why
    unchecked: list[str]
    #: what is not checked in this deployment
    notes: list[str]

    def again(self, earlier: Sighting) -> list[Finding]:
        """What was there at an earlier look, too, and has not moved since."""
        return [each for each in self.findings if each in earlier.findings]


#: What requests hold or lack that are not of an allocation.
_REQUESTS = (
    sa.select(
        model.ARQ.uuid,
        model.ARQ.state,
        model.ARQ.revision,
        model.ARQ.instance_uuid,
        model.AttachHandle.uuid.label('handle'),
    )
    .outerjoin(model.AttachHandle, model.AttachHandle.id == model.ARQ.attach_handle_id)
    .where(model.ARQ.allocation_uuid.is_(None))
    .order_by(model.ARQ.id)
)
_ACTIVE = sa.and_(
    model.Allocation.uuid == model.ARQ.allocation_uuid, model.Allocation.state == 'active'
)
#: The active allocations, with what they were given and how much of it they hold.
_ALLOCATIONS = (
    sa.select(
        model.Allocation.uuid,
        model.Allocation.accelerators,
        sa.select(sa.func.count())
        .select_from(model.ARQ)
        .where(
            model.ARQ.allocation_uuid == model.Allocation.uuid,
            model.ARQ.attach_handle_id.is_not(None),
        )
        .correlate(model.Allocation)
        .scalar_subquery()
        .label('held'),
    )
    # What is leased from a reservation is held by the reservation.
    .where(model.Allocation.state == 'active', model.Allocation.reservation_uuid.is_(None))
    .order_by(model.Allocation.id)
)
#: The requests of allocations that are not active.
_LEFTOVERS = (
    sa.select(
        model.ARQ.allocation_uuid,
        model.ARQ.uuid,
        model.ARQ.revision,
        model.AttachHandle.uuid.label('handle'),
    )
    .outerjoin(model.AttachHandle, model.AttachHandle.id == model.ARQ.attach_handle_id)
    .where(model.ARQ.allocation_uuid.is_not(None), ~sa.exists().where(_ACTIVE))
    .order_by(model.ARQ.id)
)

_again = db_api.wrap_db_retry(
    max_retries=5, retry_interval=0.05, jitter=True, max_retry_interval=1, retry_on_deadlock=True
)


class Auditor:
    """Looks, and mends what was found."""

    def __init__(
        self, conf: cfg.ConfigOpts, database: engine.Database, sender: outbox.Sender
    ) -> None:
        """:param sender: asks Nova and Placement; it need not be started: conductors send."""
        self._database, self._outbox = database, sender
        self._has_nova = clients.configured(conf, 'nova')
        self._has_placement = clients.configured(conf, 'placement')

    def look(self) -> Sighting:
        """Find what does not fit together; nothing is changed.

        It takes four statements, a call of Placement for each provider, and one or two calls of
        Nova for each instance.
        """
        with self._database.reader() as session:
            requests = session.execute(_REQUESTS).all()
            findings = [*_short(session), *_left(session)]
            providers = session.scalars(sa.select(model.Deployable.rp_uuid)).all()
        unchecked: list[str] = []
        holders = self._allocations(providers, unchecked)
        of_instances = collections.defaultdict(list)
        for row in requests:
            if row.instance_uuid is not None:
                of_instances[row.instance_uuid].append(row)
        gone = self._gone({*of_instances, *holders}, unchecked)
        for instance in sorted(gone):
            rows = of_instances.get(instance, [])
            findings.append(_of_instance(instance, rows, holders.get(instance, {})))
        # A request of an instance that is gone goes with it.
        findings += [
            _unlike(row)
            for row in requests
            if (row.state == 'Bound') != (row.handle is not None) and row.instance_uuid not in gone
        ]
        return Sighting(findings, unchecked, self._notes())

    def _notes(self) -> list[str]:
        """What is not checked, as there is nobody to ask."""
        notes = []
        if not self._has_nova:
            notes.append('Nova is not configured: instances are not checked.')
        elif not self._has_placement:
            notes.append('Placement is not configured: its allocations are not checked.')
        return notes

    def _allocations(
        self, providers: collections.abc.Sequence[str], unchecked: list[str]
    ) -> dict[str, dict[str, dict[str, int]]]:
        """What consumers have of our providers in Placement: by consumer and provider."""
        found: dict[str, dict[str, dict[str, int]]] = collections.defaultdict(dict)
        # Only Nova knows whether a consumer is an instance.
        if not (self._has_nova and self._has_placement):
            return found
        try:
            for provider, held in _answers(self._outbox.allocations, providers):
                for consumer, amounts in held.items():
                    found[consumer][provider] = amounts
        except (exceptions.ClientException, placement.Refused) as error:
            unchecked.append(
                f'Placement cannot be used: {exception.line(error)}. Not all of its allocations '
                'are checked.'
            )
        return found

    def _gone(self, instances: set[str], unchecked: list[str]) -> set[str]:
        """Those of these instances that Nova does not know."""
        gone: set[str] = set()
        if not self._has_nova:
            return gone
        try:
            for instance, is_known in _answers(self._outbox.knows, sorted(instances)):
                if not is_known:
                    gone.add(instance)
        except exception.CyborgError as error:
            # The next question would have to wait for the same timeout.
            unchecked.append(f'{error.message} Not all of {len(instances)} instances are checked.')
        return gone

    def mend(self, finding: Finding) -> str:
        """Mend what was found twice; returns the outcome in words."""
        try:
            if finding.kind == INSTANCE and self._outbox.knows(finding.id):
                return 'left: Nova knows the instance now'
            if finding.kind == INSTANCE and not self._was_instance(finding):
                return 'left: ' + _MAY_MOVE.format(id=finding.id)
            self._mend(finding)
            # Last: until then nobody else is sent to accelerators that are held.
            return self._give_back(finding) if finding.placement else MENDED
        except orm_exception.StaleDataError:
            return 'left: it changed meanwhile'
        except exception.CyborgError as error:
            return f'left: {error.message}'
        except (exceptions.ClientException, placement.Refused) as error:
            return f'left: Placement cannot be used: {exception.line(error)}'
        except (db_exception.DBError, sa.exc.SQLAlchemyError) as error:
            # The outcomes of the findings before this one must be printed.
            return f'left: {exception.line(error)}'

    def _was_instance(self, finding: Finding) -> bool:
        """Whether the consumer was an instance, and not a migration, as requests or Placement say.

        :raises cyborg_lite.clients.placement.Refused: when Placement does not answer this.
        """
        return bool(finding.requests) or self._outbox.is_instance(finding.id)

    def _give_back(self, finding: Finding) -> str:
        """Remove from Placement what the instance has of our providers; the outcome in words."""
        try:
            self._outbox.give_back(finding.id, finding.placement.keys())
        except (exceptions.ClientException, placement.Refused) as error:
            left = f'{exception.line(error)}; {_UNSET.format(id=finding.id)}'
            return f'{MENDED}, but its allocations in Placement are left: {left}'
        return MENDED

    @_again
    def _mend(self, finding: Finding) -> None:
        with self._outbox.session() as session:
            _MEND[finding.kind](session, finding)


_Answer = typing.TypeVar('_Answer')


def _answers(
    ask: collections.abc.Callable[[str], _Answer], keys: collections.abc.Sequence[str]
) -> collections.abc.Iterator[tuple[str, _Answer]]:
    """The answer for each key, some asked at once; after an error no more are asked."""
    with futures.ThreadPoolExecutor(ASKED, thread_name_prefix='audit') as pool:
        # With an error the iterator of map() ends, and cancels what has not begun.
        yield from zip(keys, pool.map(ask, keys), strict=True)


def _of_instance(
    instance: str,
    rows: collections.abc.Sequence[typing.Any],
    allocated: dict[str, dict[str, int]],
) -> Finding:
    return Finding(
        INSTANCE,
        instance,
        'Nova does not know the instance',
        {row.uuid: row.revision for row in rows},
        [row.handle for row in rows if row.handle is not None],
        allocated,
    )


def _unlike(row: typing.Any) -> Finding:
    """The finding of a request whose state and whose link do not fit together."""
    holds = 'holds an accelerator' if row.handle is not None else 'holds no accelerator'
    handles = [] if row.handle is None else [row.handle]
    problem = f'the request is {row.state} and {holds}'
    # What is being deleted cannot be unbound any more.
    kind = DELETION if row.state == 'Deleting' else REQUEST
    return Finding(kind, row.uuid, problem, {row.uuid: row.revision}, handles)


def _short(session: orm.Session) -> list[Finding]:
    """The active allocations that hold less than they were given."""
    return [
        Finding(
            ALLOCATION,
            row.uuid,
            f'the allocation is active and holds {row.held} of its {len(row.accelerators)} '
            'accelerators',
        )
        for row in session.execute(_ALLOCATIONS)
        if row.held < len(row.accelerators)
    ]


def _left(session: orm.Session) -> list[Finding]:
    """What is held for allocations that are not active."""
    by_allocation = collections.defaultdict(list)
    for row in session.execute(_LEFTOVERS):
        by_allocation[row.allocation_uuid].append(row)
    return [
        Finding(
            LEFTOVER,
            allocation,
            'the allocation is not active, and requests of it are left',
            {row.uuid: row.revision for row in rows},
            [row.handle for row in rows if row.handle is not None],
        )
        for allocation, rows in by_allocation.items()
    ]


def _free_instance(session: orm.Session, finding: Finding) -> None:
    binding.delete_of(session, context.service(), finding.id, finding.requests)


def _unbind(session: orm.Session, finding: Finding) -> None:
    binding.unbind(session, context.service(), [finding.id], finding.requests)


def _delete(session: orm.Session, finding: Finding) -> None:
    binding.delete(session, context.service(), [finding.id], finding.requests)


_MEND: dict[str, collections.abc.Callable[[orm.Session, Finding], None]] = {
    INSTANCE: _free_instance,
    REQUEST: _unbind,
    DELETION: _delete,
    ALLOCATION: lambda session, finding: releasing.end_short(session, finding.id),
    LEFTOVER: lambda session, finding: releasing.sweep(session, finding.id),
}
