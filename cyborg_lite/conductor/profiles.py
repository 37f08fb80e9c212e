# SPDX-License-Identifier: Apache-2.0
"""Device profiles: what workloads may ask for."""

from __future__ import annotations

import uuid as uuidlib

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.db import query
from cyborg_lite.db import quotas

# Asked for with the row, so that nothing more is asked while no quota is set.
_limited = orm.with_expression(model.DeviceProfile.limited, quotas.ANY)
_named = model.DeviceProfile.name == sa.bindparam('of_name', type_=sa.String())
_BY_NAME = sa.select(model.DeviceProfile).where(_named).options(_limited)
_has_id = sa.or_(_named, model.DeviceProfile.uuid == sa.bindparam('of_uuid', type_=sa.String()))
_BY_ID = sa.select(model.DeviceProfile).where(_has_id, ~model.DeviceProfile.private)
#: Of each profile that has this name or this uuid, whether it has the name.
_SAME = sa.select(_named).where(_has_id)
_CREATE = sa.insert(model.DeviceProfile)


def create(session: orm.Session, ctxt: context.RequestContext, profile: model.Facts) -> str:
    """Create a profile of these columns; returns its uuid.

    :raises cyborg_lite.exception.Duplicate: when its name or its uuid is taken.
    """
    uuid = profile.get('uuid') or str(uuidlib.uuid4())
    row = profile | {'uuid': uuid}
    named = query.run(session, _SAME, {'of_name': row['name'], 'of_uuid': uuid}).scalars().all()
    if named:
        field = 'name' if any(named) else 'uuid'
        raise exception.Duplicate(what='Device profile', field=field, value=row[field])
    query.run(session, _CREATE, row)
    return uuid


def delete(session: orm.Session, ctxt: context.RequestContext, id: str) -> None:
    """Delete a profile by its uuid, or else by its name.

    :raises cyborg_lite.exception.NotFound: when there is none.
    :raises cyborg_lite.exception.Conflict: while requests refer to it.
    """
    # Locked: of two concurrent deletes the second finds that it is gone.
    profile = _find(session, model.DeviceProfile.uuid, id, lock=True) or _find(
        session, model.DeviceProfile.name, id, lock=True
    )
    if profile is None:
        raise exception.NotFound(what='Device profile', id=id)
    users = sa.select(model.ARQ.id).where(model.ARQ.device_profile_id == profile.id).limit(1)
    if session.scalar(users):
        raise exception.Conflict(
            reason=f'Device profile {profile.name} is in use by accelerator requests: delete '
            'them first.'
        )
    session.delete(profile)


def find(session: orm.Session, id: str) -> model.DeviceProfile:
    """The profile of this uuid, or else of this name: a name may look like a uuid.

    :raises cyborg_lite.exception.NotFound: when there is none.
    """
    rows = session.scalars(_BY_ID, {'of_name': id, 'of_uuid': id})
    found = {each: row for row in rows for each in (row.uuid, row.name)}
    if id not in found:
        raise exception.NotFound(what='Device profile', id=id)
    return found[id]


def by_name(session: orm.Session, name: str) -> model.DeviceProfile:
    """The profile of this name.

    :raises cyborg_lite.exception.NotFound: when there is none.
    """
    profile = session.scalars(_BY_NAME, {'of_name': name}).one_or_none()
    if profile is None or profile.private:
        raise exception.NotFound(what='Device profile', id=name)
    return profile


resources = model.DeviceProfile.resources


def traits(group: dict[str, str]) -> tuple[set[str], set[str]]:
    """The traits that a group of a profile requires, and those that it forbids."""
    asked = {
        value: {key.partition(':')[2] for key in group if _says(group, key, value)}
        for value in ('required', 'forbidden')
    }
    return asked['required'], asked['forbidden']


def _says(group: dict[str, str], key: str, value: str) -> bool:
    return key.startswith('trait:') and group[key] == value


def _find(
    session: orm.Session, column: orm.InstrumentedAttribute[str], value: str, lock: bool = False
) -> model.DeviceProfile | None:
    query = sa.select(model.DeviceProfile).where(column == value)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()
