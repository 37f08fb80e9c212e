# SPDX-License-Identifier: Apache-2.0
"""Count usage

What is held already counts from when it was bound, as far as that is known.
"""

import datetime
import json
import typing

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

revision = 'c94e7b1f6a20'
down_revision = 'a5e83c1d7f42'

Moment = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')


def upgrade() -> None:
    op.create_table(
        'usages',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('project_id', sa.String(255), nullable=False),
        sa.Column('resource_class', sa.String(255)),
        sa.Column('host', sa.String(255), nullable=False),
        sa.Column('device_uuid', sa.String(36), nullable=False),
        sa.Column('accelerator_uuid', sa.String(36), nullable=False),
        sa.Column('arq_uuid', sa.String(36), nullable=False),
        sa.Column('allocation_uuid', sa.String(36)),
        sa.Column('instance_uuid', sa.String(36)),
        sa.Column('began_at', Moment, nullable=False),
        sa.Column('ended_at', Moment, nullable=False),
        sa.Index(None, 'ended_at'),
        sa.Index(None, 'project_id', 'ended_at'),
        sa.Index(None, 'host'),
        # Texts are equal if their bytes are, as in the other databases.
        mysql_charset='utf8mb4',
        mysql_collate='utf8mb4_nopad_bin',
    )
    table = 'accelerator_requests'
    op.add_column(table, sa.Column('held_since', Moment))
    op.add_column(table, sa.Column('resource_class', sa.String(255)))
    _fill(op.get_bind())


def _fill(connection: sa.Connection) -> None:
    metadata = sa.MetaData()
    names = ('accelerator_requests', 'attach_handles', 'attributes')
    metadata.reflect(connection, only=names)
    requests, handles, attributes = (metadata.tables[name] for name in names)
    held = (
        sa.select(requests, attributes.c.value.label('class'))
        .join(handles, handles.c.id == requests.c.attach_handle_id)
        .outerjoin(
            attributes,
            sa.and_(
                attributes.c.deployable_id == handles.c.deployable_id, attributes.c.key == 'rc'
            ),
        )
    )
    for row in connection.execute(held).all():
        since = _bound_at(row.moves) or row.updated_at or row.created_at
        values = {'held_since': since, 'resource_class': row[-1]}
        connection.execute(sa.update(requests).where(requests.c.id == row.id).values(values))


def _bound_at(moves: typing.Any) -> datetime.datetime | None:
    """When a request was bound, if its moves say so."""
    moves = json.loads(moves) if isinstance(moves, str) else moves
    times = [move['at'] for move in moves or () if move['state'] == 'Bound']
    return datetime.datetime.fromisoformat(times[-1]).replace(tzinfo=None) if times else None
