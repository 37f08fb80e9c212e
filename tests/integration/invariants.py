# SPDX-License-Identifier: Apache-2.0
"""What always holds once the service has come to rest, asked of the database and of Placement.

Each function returns what is wrong, in words.
"""

from __future__ import annotations

import collections
import collections.abc

from keystoneauth1 import adapter

from cyborg_lite import model
from tests.integration import deployment as deployment_

Wrong = collections.abc.Iterator[str]


def links(arqs: collections.abc.Sequence[model.ARQ], providers: dict[int, str]) -> Wrong:
    """I1 and I2.

    :param providers: by the id of a handle, the provider that it is of.
    """
    holders = collections.Counter(arq.attach_handle_id for arq in arqs if arq.attach_handle_id)
    for handle, count in holders.items():
        if count > 1:
            yield f'I1: handle {handle} has {count} holders'
    for arq in arqs:
        if (arq.state == 'Bound') != (arq.attach_handle_id is not None):
            yield f'I2: ARQ {arq.uuid} is {arq.state} and holds {arq.attach_handle_id}'
        elif arq.attach_handle_id and providers.get(arq.attach_handle_id) != arq.device_rp_uuid:
            yield f'I2: ARQ {arq.uuid} holds a handle of another provider'


def in_database(deployment: deployment_.Deployment) -> Wrong:
    """I1, I2, and of I6 that nobody is still to be told of anything."""
    with deployment.database.reader() as session:
        joined = session.query(model.AttachHandle.id, model.Deployable.rp_uuid).join(
            model.Deployable, model.Deployable.id == model.AttachHandle.deployable_id
        )
        providers = {row.id: row.rp_uuid for row in joined}
        yield from links(session.query(model.ARQ).all(), providers)
        for message in session.query(model.Message):
            yield f'I6: {message.kind} {message.key} waits'


def in_placement(deployment: deployment_.Deployment, placement: adapter.Adapter) -> Wrong:
    """I5: Placement knows each deployable as the rows have it, and no other below a host."""
    with deployment.database.reader() as session:
        wanted = {part.rp_uuid: _wanted(part) for part in session.query(model.Deployable)}
    listed = placement.get('/resource_providers').json()['resource_providers']
    ours = {each['uuid'] for each in listed if each['parent_provider_uuid']}
    for rp_uuid in ours ^ wanted.keys():
        yield f'I5: provider {rp_uuid} is in one of Placement and the database only'
    for rp_uuid in ours & wanted.keys():
        found = _found(placement, rp_uuid)
        if found != wanted[rp_uuid]:
            yield f'I5: provider {rp_uuid} is {found}, and is to be {wanted[rp_uuid]}'


def _wanted(part: model.Deployable) -> tuple[dict[str, tuple[int, int]], set[str]]:
    total = len(part.attach_handles)
    device = part.device
    unfit = device.status != 'enabled' or device.absences or device.host.silent
    reserved = total if unfit else sum(handle.lost for handle in part.attach_handles)
    traits = {a.value for a in part.attributes if a.key.startswith('trait')}
    [resource_class] = [a.value for a in part.attributes if a.key == 'rc']
    return {resource_class: (total, reserved)}, traits | {'OWNER_CYBORG'}


def _found(placement: adapter.Adapter, uuid: str) -> tuple[dict[str, tuple[int, int]], set[str]]:
    inventories = placement.get(f'/resource_providers/{uuid}/inventories').json()['inventories']
    traits = placement.get(f'/resource_providers/{uuid}/traits').json()['traits']
    return {k: (v['total'], v['reserved']) for k, v in inventories.items()}, set(traits)
