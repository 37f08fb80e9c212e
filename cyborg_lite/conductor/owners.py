# SPDX-License-Identifier: Apache-2.0
"""Which projects own the instances that have given accelerators back."""

from __future__ import annotations

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import context
from cyborg_lite import model


def remember(session: orm.Session, ctxt: context.RequestContext, arqs: list[model.ARQ]) -> None:
    """Store the projects of the instances that release these requests.

    Nova evacuates with an administrator's token: it deletes the requests of the instance and then
    binds new ones, and its calls do not name the owner. Without service tokens the owner is not
    needed.
    """
    if not ctxt.vouched or not any(arq.instance_uuid for arq in arqs):
        return
    found = (
        sa.select(
            model.ARQ.instance_uuid,
            sa.func.max(model.ARQ.project_id),
            sa.literal(timeutils.utcnow()),
        )
        .where(
            model.ARQ.id.in_([arq.id for arq in arqs]),
            model.ARQ.instance_uuid.is_not(None),
            ~sa.exists().where(model.Instance.uuid == model.ARQ.instance_uuid),
        )
        .group_by(model.ARQ.instance_uuid)
    )
    columns = ['uuid', 'project_id', 'created_at']
    session.execute(sa.insert(model.Instance).from_select(columns, found, include_defaults=False))
