# SPDX-License-Identifier: Apache-2.0
"""Accelerator requests, and what they are bound to: read and locked.

Statements are made once, with parameters: SQLAlchemy takes longer to make one than the database
takes to execute it.
"""

from __future__ import annotations

import collections.abc
import functools
import typing

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite.db import exclusion
from cyborg_lite.db import promises
from cyborg_lite.db import query

Condition = sa.ColumnElement[bool]
Found = list[model.ARQ]
#: Of each request its uuid, its revision, and the uuid of its instance, if it has one.
Revisions = list[typing.Any]


class Sight(typing.NamedTuple):
    """Which requests a caller sees: see model.ARQ.visible()."""

    #: None for a caller that sees all
    project: str | None
    vouched: bool

    @property
    def kind(self) -> tuple[bool, bool]:
        """What a statement differs by."""
        return self.project is not None, self.vouched


#: That a deployable is one of these providers.
OF_PROVIDERS = model.Deployable.rp_uuid.in_(sa.bindparam('providers', expanding=True))
_UUIDS = model.ARQ.uuid.in_(sa.bindparam('uuids', expanding=True))
_OF_INSTANCE = model.ARQ.instance_uuid == sa.bindparam('instance')
_AWAITED = sa.exists().where(model.Allocation.state.in_(('queued', 'reserved')))

#: That requests have not moved since they were read, should the lock on them be lost: see read().
UNMOVED = sa.and_(
    model.ARQ.id.in_(sa.bindparam('ids', expanding=True)),
    sa.tuple_(model.ARQ.id, model.ARQ.revision).in_(sa.bindparam('read', expanding=True)),
)


def read(arqs: collections.abc.Iterable[model.ARQ]) -> dict[str, typing.Any]:
    """The values of the parameters of UNMOVED."""
    pairs = [(arq.id, arq.revision) for arq in arqs]
    return {'ids': [id for id, _ in pairs], 'read': pairs}


def to_bind(
    session: orm.Session,
    sight: Sight,
    uuids: list[str],
    instances: collections.abc.Iterable[str],
) -> list[tuple[model.ARQ, bool]]:
    """Those of these requests that the caller may see, and what these instances have; and of each
    whether it is one of the first.
    """
    values = {'uuids': uuids, 'instances': list(instances), 'project': sight.project}
    return [(arq, ours) for arq, ours in session.execute(_to_bind(*sight.kind), values)]


@functools.cache
def _to_bind(scoped: bool, vouched: bool) -> sa.Select[typing.Any]:
    visible = sa.and_(_UUIDS, _visible(scoped, vouched))
    # Both questions are of the same table.
    of_instances = model.ARQ.instance_uuid.in_(sa.bindparam('instances', expanding=True))
    columns: tuple[typing.Any, ...] = model.ARQ, visible
    return (
        sa.select(*columns)
        .where(sa.or_(visible, of_instances))
        .options(orm.undefer(model.ARQ.moves), orm.lazyload(model.ARQ.attach_handle))
    )


def seen(session: orm.Session, sight: Sight, uuids: list[str]) -> Revisions:
    """Those of these requests that the caller may see."""
    return _seen(session, sight, {'uuids': uuids})


def seen_of(session: orm.Session, sight: Sight, instance: str) -> Revisions:
    """The requests of an instance that the caller may see."""
    return _seen(session, sight, {'instance': instance})


def _seen(session: orm.Session, sight: Sight, values: dict[str, typing.Any]) -> Revisions:
    query_ = _revisions(*sight.kind, 'instance' in values)
    return list(query.run(session, query_, values | {'project': sight.project}))


@functools.cache
def _revisions(scoped: bool, vouched: bool, of_instance: bool) -> sa.Select[typing.Any]:
    of = _OF_INSTANCE if of_instance else _UUIDS
    columns: tuple[typing.Any, ...] = (
        model.ARQ.uuid,
        model.ARQ.revision,
        model.ARQ.instance_uuid,
    )
    return sa.select(*columns).where(of, _visible(scoped, vouched))


def locked(session: orm.Session, sight: Sight, uuids: list[str], moves: bool = False) -> Found:
    """Those of these requests that there are and that the caller may see.

    :param moves: whether to read their moves.
    """
    values = {'uuids': uuids, 'project': sight.project}
    return list(session.scalars(_these(*sight.kind, moves), values))


@functools.cache
def _these(scoped: bool, vouched: bool, moves: bool) -> sa.Select[typing.Any]:
    query_ = _locked(_UUIDS, _visible(scoped, vouched))
    return query_.options(orm.undefer(model.ARQ.moves)) if moves else query_


def locked_of(
    session: orm.Session,
    sight: Sight,
    instance: str,
    seen: collections.abc.Iterable[str] | None,
) -> Found:
    """The requests of an instance that the caller may see.

    :param seen: the uuids of those that count; None for all.
    """
    values = {'instance': instance, 'uuids': list(seen or ()), 'project': sight.project}
    return list(session.scalars(_of_instance(*sight.kind, seen is not None), values))


@functools.cache
def _of_instance(scoped: bool, vouched: bool, some: bool) -> sa.Select[typing.Any]:
    of = [_OF_INSTANCE, _visible(scoped, vouched)]
    return _locked(*of, *([_UUIDS] if some else []))


def _locked(*conditions: Condition) -> sa.Select[typing.Any]:
    # MariaDB locks whatever is joined, and a profile is of many requests.
    awaited = orm.with_expression(model.ARQ.awaited, _AWAITED)
    query_ = sa.select(model.ARQ).where(*conditions).options(orm.lazyload('*'), awaited)
    return query_.order_by(model.ARQ.id).with_for_update()


def _visible(scoped: bool, vouched: bool) -> Condition:
    return model.ARQ.visible(sa.bindparam('project') if scoped else None, vouched)


def providers(
    session: orm.Session, rp_uuids: list[str], hosts: list[str]
) -> dict[str, model.Deployable]:
    """Those of these providers that are on these hosts, by uuid, with their devices."""
    values = {'providers': rp_uuids, 'hosts': hosts}
    return {row.rp_uuid: row for row in session.scalars(_PROVIDERS, values).unique()}


_ON_HOSTS = model.Device.hostname.in_(sa.bindparam('hosts', expanding=True))
_PROVIDERS = (
    sa.select(model.Deployable)
    .where(OF_PROVIDERS, model.Deployable.device.has(_ON_HOSTS))
    .options(
        orm.joinedload(model.Deployable.device).joinedload(model.Device.host),
        orm.joinedload(model.Deployable.attributes),
    )
)


def free_handles(
    session: orm.Session, provider: model.Deployable, instance: str, most: int | None = None
) -> list[typing.Any]:
    """The free handles of a provider for an instance: id, uuid, form, and whether each excludes
    others while it is held.

    :param most: how many are read; None for all.
    """
    values = exclusion.parameters(provider.device, instance) | {'provider': provider.id}
    if most is None:
        return list(query.run(session, _FREE, values))
    return list(query.run(session, _FIRST_FREE, values | {'most': most}))


_FREE = (
    sa.select(
        model.AttachHandle.id,
        model.AttachHandle.uuid,
        model.AttachHandle.form,
        exclusion.EXCLUDES.label('excludes'),
    )
    .where(
        model.AttachHandle.deployable_id == sa.bindparam('provider'),
        ~model.AttachHandle.lost,
        ~exclusion.HELD,
        ~promises.KEPT,
        *exclusion.FREE,
    )
    .order_by(model.AttachHandle.id)
)
_FIRST_FREE = _FREE.limit(sa.bindparam('most', type_=sa.Integer()))
