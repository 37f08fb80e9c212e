# SPDX-License-Identifier: Apache-2.0
"""The names of providers, the UUIDs that follow from them, and the keys of traits: each name is
given once.
"""

from __future__ import annotations

import collections.abc
import hashlib
import itertools
import uuid as uuidlib

import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model

#: How long the name of a provider may be. Source: the Placement API reference.
LONGEST = 200


def give(session: orm.Session, part: model.Deployable, name: str) -> None:
    """Give a provider this name; something is added to it if another row has it.

    A card that is gone keeps its provider, and with it the name, while it is held.  A host that was
    renamed keeps the UUIDs that follow from its old name, and another host may get that name.
    """
    device = part.device
    known = f'_{device.serial or device.product or device.vendor}'
    more = itertools.chain(('', known), (f'_{number}' for number in itertools.count(2)))
    candidates = (_fitting(name, each) for each in more)
    with session.no_autoflush:
        part.name = next(each for each in candidates if not taken(session, [each], part.id or 0))


def taken(session: orm.Session, names: list[str], own: int = 0) -> set[str]:
    """Those of these names that a provider has, or of which it has the UUID.

    :param own: the id of the deployable that gets the name.
    """
    by_uuid = {uuid_of(name): name for name in names}
    rows = session.execute(
        sa.select(model.Deployable.name, model.Deployable.rp_uuid).where(
            sa.or_(model.Deployable.name.in_(names), model.Deployable.rp_uuid.in_(by_uuid)),
            model.Deployable.id != own,
        )
    ).all()
    return {row.name for row in rows} | {by_uuid.get(row.rp_uuid, row.name) for row in rows}


def uuid_of(name: str) -> str:
    """The UUID that follows from a name: a new provider has it, as upstream."""
    return str(uuidlib.uuid3(uuidlib.NAMESPACE_DNS, name))


def _fitting(name: str, more: str) -> str:
    """A name with something added, cut to what Placement takes: 200 characters."""
    if len(name) + len(more) <= LONGEST:
        return name + more
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    more = more[-64:]
    return f'{name[: LONGEST - len(more) - 9]}_{digest}{more}'


def number_traits(session: orm.Session, parts: list[model.Deployable]) -> None:
    """Give the traits that drivers report the numbers that operators have not used."""
    changed = []
    for part in parts:
        ours = [a for a in part.attributes if a.is_trait and not a.added]
        free = free_keys(part)
        for attribute, key in zip(sorted(ours, key=lambda a: a.value), free, strict=False):
            if attribute.key != key:
                changed.append((attribute, key))
    for attribute, key in changed:
        # Two keys may change places.
        attribute.key = f'{key} of {attribute.uuid}'
    if changed:
        session.flush()
    for attribute, key in changed:
        attribute.key = key


def free_keys(part: model.Deployable) -> collections.abc.Iterator[str]:
    """The keys of traits that no operator has used for this deployable."""
    used = {attribute.key for attribute in part.attributes if attribute.added}
    return (key for n in itertools.count() if (key := f'trait{n}') not in used)


def free_key(part: model.Deployable, attribute: model.Attribute) -> str | None:
    """The key that an operator's attribute gets in another row; None if it has no place there."""
    added = {own.key: own for own in part.attributes if own.added}
    if not attribute.is_trait:
        return None if attribute.key in {own.key for own in part.attributes} else attribute.key
    if attribute.value in {own.value for own in added.values() if own.is_trait}:
        return None
    return next(free_keys(part)) if attribute.key in added else attribute.key
