# SPDX-License-Identifier: Apache-2.0
"""Heartbeats: reports that say what the last one of their agent said, noted by one UPDATE."""

from __future__ import annotations

import hashlib
import typing

from oslo_utils import timeutils
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import context
from cyborg_lite import model
from cyborg_lite.conductor import health
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import trust
from cyborg_lite.db import query


class Frame(typing.TypedDict):
    """What a report says beside its devices."""

    host: str
    #: which machine this is, whatever its name; None if it shows nothing that tells
    machine: typing.NotRequired[str | None]
    #: which start of an agent reports; both are new, and an agent of the release before lacks them
    agent: typing.NotRequired[str]
    #: what the agent of this host alone knows, over its restarts; None if it keeps none
    secret: typing.NotRequired[str | None]
    #: which boot of the host this is, and the order of reports within it
    boot_id: str
    sequence: int
    #: after how many seconds the next one is due
    interval: int
    #: equal if and only if devices and drivers are equal
    digest: str
    #: per driver its state, ``ok`` or ``degraded``, and the reason
    drivers: dict[str, model.Facts]
    #: per driver how often it has looked; an agent of the release before does not say
    looks: typing.NotRequired[dict[str, int]]
    #: and how many of these are samples of health; an agent of the release before does not say
    samples: typing.NotRequired[dict[str, int]]
    #: see model.Host; an agent of the release before does not say
    access: typing.NotRequired[str | None]
    #: see model.Host; 0 if the host never says that a card is idle
    idle_after: typing.NotRequired[int]
    #: the uuids of the leases whose processes the agent left out when it looked who uses which card
    #: without a lease; None if it does not know; an agent of the release before does not say
    leases: typing.NotRequired[list[str] | None]
    #: whether the agent looks which processes use its cards; if not, it says nothing of use
    observes: typing.NotRequired[bool]
    #: the sequence of a report that had been accepted when that look began; 0 for none
    looked_after: typing.NotRequired[int]


_NOTE = (
    sa.update(model.Host)
    .where(
        model.Host.name == sa.bindparam('host'),
        model.Host.boot_id == sa.bindparam('boot'),
        # Both are null for an agent of the release before.
        model.Host.agent.is_not_distinct_from(sa.bindparam('started')),
        model.Host.digest == sa.bindparam('mark'),
        # An agent that does not know it must not report: see trust.
        model.Host.secret.is_not_distinct_from(sa.bindparam('proof')),
        # Tell Placement that it is back.
        ~model.Host.silent,
        model.Host.renamed_to.is_(None),
        model.Host.sequence < sa.bindparam('sent'),
    )
    .values(
        seen_at=sa.bindparam('now'),
        sequence=sa.bindparam('sent'),
        interval=sa.bindparam('period'),
    )
)


def is_unchanged(
    session: orm.Session, _ctxt: context.RequestContext, report: Frame, policy: health.Policy
) -> bool:
    """Whether a report says what the last one of its agent said. If so, it is noted by one UPDATE,
    which needs no device; otherwise, ``receive`` has to process it.
    """
    values = {
        'host': report['host'],
        'boot': report['boot_id'],
        'started': report.get('agent'),
        'mark': mark(session, report, policy),
        'proof': trust.digest(report),
        'sent': report['sequence'],
        'now': timeutils.utcnow(),
        'period': report['interval'],
    }
    return query.matched(session, _NOTE, values) == 1


def mark(session: orm.Session, report: Frame, policy: health.Policy) -> str:
    """A digest of a report: a report with the same digest need not be processed. The digest also
    depends on the health policy, and on whether Placement is configured.
    """
    told = 'told' if outbox.tells(session, outbox.PROVIDER) else 'kept'
    text = f'{told} {health.digest(policy)} {report.get("machine")} {report["digest"]}'
    return hashlib.sha256(text.encode()).hexdigest()
