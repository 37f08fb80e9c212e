# SPDX-License-Identifier: Apache-2.0
"""Accelerator requests: create, bind, unbind, delete.

A request holds an accelerator if and only if it links to its handle, and the link is unique:
the database refuses to give a handle twice.  A state moves by one UPDATE that names the states
it may come from, and that says by its row count whether it moved.
"""

from __future__ import annotations

import collections
import collections.abc
import typing
import uuid as uuidlib

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import profiles

#: From which states a request may come into each.
SOURCES: dict[str, tuple[str, ...]] = {
    'BindStarted': ('Initial', 'Unbound'),
    'Bound': ('Initial', 'Unbound', 'BindStarted'),
    'BindFailed': ('Initial', 'Unbound', 'BindStarted'),
    'Unbound': ('Bound', 'BindStarted', 'BindFailed', 'UnbindFailed', 'Unbound', 'Initial'),
    'UnbindFailed': ('Bound', 'BindFailed', 'UnbindFailed'),
    'Deleting': (
        'Initial', 'BindStarted', 'Bound', 'BindFailed', 'Unbound', 'UnbindFailed', 'Deleting',
    ),
}  # fmt: skip


class Wish(typing.TypedDict):
    """Where a request is to be bound."""

    uuid: str
    hostname: str
    #: the provider that Placement, or whoever places, has chosen
    device_rp_uuid: str
    instance_uuid: str
    #: the owner from now on
    project_id: str


def create(
    session: orm.Session, ctxt: context.RequestContext, profile: str, token: str
) -> list[str]:
    """Create a request for each accelerator of the profile; returns their uuids in order.

    :param token: a uuid that is the same if the same call arrives twice: the second time nothing
        is created.
    :raises cyborg_lite.exception.NotFound: when there is no such profile.
    """
    wanted = profiles.by_name(session, profile)
    groups = [
        number
        for number, group in enumerate(wanted.groups)
        for _ in range(sum(profiles.resources(group).values()))
    ]
    uuids = [str(uuidlib.uuid5(uuidlib.UUID(token), str(n))) for n in range(len(groups))]
    if not uuids or session.scalar(sa.select(model.ARQ.id).where(model.ARQ.uuid == uuids[0])):
        return uuids
    rows = [
        {
            'uuid': uuid,
            'device_profile_id': wanted.id,
            'device_profile_group_id': group,
            'project_id': ctxt.project_id,
        }
        for uuid, group in zip(uuids, groups, strict=True)
    ]
    session.execute(sa.insert(model.ARQ), rows)
    return uuids


def bind(session: orm.Session, ctxt: context.RequestContext, wishes: list[Wish]) -> None:
    """Give each request a free accelerator of its provider: all of them or none.

    :raises cyborg_lite.exception.NotFound: when a request does not exist for the caller.
    :raises cyborg_lite.exception.Conflict: when a request is not in a state to be bound.
    :raises cyborg_lite.exception.Invalid: when an instance has requests already.
    :raises cyborg_lite.exception.CannotBind: when a provider has not what is wished.
    """
    _wait_for_turn(session, {wish['device_rp_uuid'] for wish in wishes})
    arqs = {arq.uuid: arq for arq in _load(session, ctxt, [wish['uuid'] for wish in wishes])}
    for arq in arqs.values():
        if arq.state not in SOURCES['BindStarted']:
            raise exception.Conflict(
                reason=f'ARQ {arq.uuid} is {arq.state}: unbind it before it is bound again.'
            )
    _refuse_taken_instances(session, {wish['instance_uuid'] for wish in wishes})
    by_provider = collections.defaultdict(list)
    for wish in wishes:
        by_provider[wish['device_rp_uuid']].append(wish)
    providers = _providers(session, by_provider)
    for rp_uuid, together in by_provider.items():
        wanted = [arqs[wish['uuid']] for wish in together]
        handles = _free_handles(session, providers.get(rp_uuid), rp_uuid, wanted)
        for wish, handle in zip(together, handles, strict=True):
            _move(session, [wish['uuid']], 'Bound', attach_handle_id=handle, **_place(wish))
    _notify(session, wishes, 'completed')


def fail(session: orm.Session, ctxt: context.RequestContext, wishes: list[Wish]) -> None:
    """Note that these requests could not be bound, and where they should have been."""
    for wish in wishes:
        _move(session, [wish['uuid']], 'BindFailed', must=False, **_place(wish))
    _notify(session, wishes, 'failed')


def _notify(session: orm.Session, wishes: list[Wish], status: str) -> None:
    """Have Nova told, one call for each instance."""
    events: dict[str, model.Facts] = collections.defaultdict(dict)
    for wish in wishes:
        events[wish['instance_uuid']][wish['uuid']] = status
    outbox.put(session, outbox.EVENT, events)


def unbind(session: orm.Session, ctxt: context.RequestContext, uuids: list[str]) -> None:
    """Free what these requests hold; one that holds nothing stays as it is.

    :raises cyborg_lite.exception.NotFound: when a request does not exist for the caller.
    """
    _load(session, ctxt, uuids)
    _move(
        session,
        uuids,
        'Unbound',
        must=False,
        attach_handle_id=None,
        hostname=None,
        device_rp_uuid=None,
        instance_uuid=None,
    )


def delete(session: orm.Session, ctxt: context.RequestContext, uuids: list[str]) -> list[str]:
    """Delete these requests and free what they hold; returns the uuids that do not exist."""
    found = set(session.scalars(_visible(ctxt, sa.select(model.ARQ.uuid), uuids)))
    session.execute(sa.delete(model.ARQ).where(model.ARQ.uuid.in_(found)))
    return [uuid for uuid in uuids if uuid not in found]


def delete_of(session: orm.Session, ctxt: context.RequestContext, instance: str) -> None:
    """Delete the requests of an instance, if it has any."""
    gone = sa.delete(model.ARQ).where(model.ARQ.instance_uuid == instance)
    if ctxt.scope is not None:
        gone = gone.where(model.ARQ.project_id == ctxt.scope)
    session.execute(gone)


def _visible(
    ctxt: context.RequestContext, query: sa.Select[typing.Any], uuids: list[str]
) -> sa.Select[typing.Any]:
    query = query.where(model.ARQ.uuid.in_(uuids))
    return query if ctxt.scope is None else query.where(model.ARQ.project_id == ctxt.scope)


def _load(session: orm.Session, ctxt: context.RequestContext, uuids: list[str]) -> list[model.ARQ]:
    """These requests, locked, in no certain order."""
    # MariaDB locks whatever is joined, and a profile is of many requests.
    query = _visible(ctxt, sa.select(model.ARQ), uuids).options(orm.lazyload('*'))
    arqs = list(session.scalars(query.with_for_update()))
    missing = set(uuids) - {arq.uuid for arq in arqs}
    if missing:
        raise exception.NotFound(what='ARQ', id=', '.join(sorted(missing)))
    return arqs


def _wait_for_turn(session: orm.Session, rp_uuids: set[str]) -> None:
    """Lock the hosts of these providers, as a report does: what follows sees all that was done."""
    hosts = (
        sa.select(model.Host.id)
        .join(model.Device)
        .join(model.Deployable)
        .where(model.Deployable.rp_uuid.in_(rp_uuids))
        .order_by(model.Host.id)
    )
    session.execute(hosts.with_for_update(of=model.Host))


def _refuse_taken_instances(session: orm.Session, instances: set[str]) -> None:
    taken = session.scalar(
        sa.select(model.ARQ.instance_uuid).where(model.ARQ.instance_uuid.in_(instances)).limit(1)
    )
    if taken:
        raise exception.Invalid(reason=f'Instance {taken} already has accelerator requests')


def _providers(
    session: orm.Session, rp_uuids: collections.abc.Iterable[str]
) -> dict[str, model.Deployable]:
    query = (
        sa.select(model.Deployable)
        .where(model.Deployable.rp_uuid.in_(rp_uuids))
        .options(
            orm.joinedload(model.Deployable.device).joinedload(model.Device.host),
            orm.joinedload(model.Deployable.attributes),
        )
    )
    return {row.rp_uuid: row for row in session.scalars(query).unique()}


def _free_handles(
    session: orm.Session,
    provider: model.Deployable | None,
    rp_uuid: str,
    arqs: list[model.ARQ],
) -> list[int]:
    """The ids of free handles of the provider, as many as there are requests."""
    if provider is None:
        raise exception.ProviderNotFound(provider=rp_uuid)
    _refuse_unfit(provider, arqs)
    query = (
        sa.select(model.AttachHandle.id)
        .where(
            model.AttachHandle.deployable_id == provider.id,
            ~model.AttachHandle.lost,
            ~sa.exists().where(model.ARQ.attach_handle_id == model.AttachHandle.id),
        )
        .order_by(model.AttachHandle.id)
        .limit(len(arqs))
    )
    handles = list(session.scalars(query))
    if len(handles) < len(arqs):
        raise exception.NoFreeHandle(provider=rp_uuid, free=len(handles), wanted=len(arqs))
    return handles


def _refuse_unfit(provider: model.Deployable, arqs: list[model.ARQ]) -> None:
    reason = None
    if provider.device.obstacle:
        reason = f'its device {provider.device.obstacle}'
    for arq in arqs:
        asked = profiles.resources(arq.device_profile.groups[arq.device_profile_group_id])
        if provider.resource_class not in asked:
            reason = f'it gives {provider.resource_class}, and ARQ {arq.uuid} wants ' + ', '.join(
                sorted(asked)
            )
    if reason:
        raise exception.ProviderUnfit(provider=provider.rp_uuid, reason=reason)


def _place(wish: Wish) -> dict[str, typing.Any]:
    return {name: value for name, value in wish.items() if name != 'uuid'}


def _move(
    session: orm.Session,
    uuids: list[str],
    state: str,
    must: bool = True,
    **values: typing.Any,
) -> None:
    """Bring requests into a state, those that are in one that it may come from."""
    moved = session.execute(
        sa.update(model.ARQ)
        .where(model.ARQ.uuid.in_(uuids), model.ARQ.state.in_(SOURCES[state]))
        .values(state=state, **values)
        .execution_options(synchronize_session=False)
    )
    if must and typing.cast('sa.CursorResult[typing.Any]', moved).rowcount != len(uuids):
        raise exception.Conflict(reason=f'ARQ {", ".join(uuids)} changed meanwhile: try again.')
