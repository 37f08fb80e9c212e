# SPDX-License-Identifier: Apache-2.0
"""What a conductor does now and then, unasked; whichever comes first does it."""

from __future__ import annotations

import threading

from oslo_config import cfg
from oslo_log import log
import sqlalchemy as sa
from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite.conductor import outbox

LOG = log.getLogger(__name__)


class Healer:
    """Does it, in a thread of each conductor."""

    def __init__(self, conf: cfg.ConfigOpts, sender: outbox.Sender) -> None:
        self._outbox = sender
        self._interval = conf.conductor.healing_interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name='healer', daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self.heal()
            except Exception:
                LOG.exception('Hosts that are down could not be looked for')

    def heal(self) -> None:
        with self._outbox.session() as session:
            notice_silence(session)


def notice_silence(session: orm.Session) -> None:
    """Have nothing scheduled to hosts that are down; their next report ends that."""
    up = ~model.Host.silent
    late = [
        sa.and_(
            model.Host.interval == interval,
            model.Host.seen_at < model.Host.alive_since(interval),
        )
        for interval in session.scalars(sa.select(model.Host.interval).where(up).distinct())
    ]
    parts = orm.selectinload(model.Host.found).selectinload(model.Device.deployables)
    hosts = (
        sa.select(model.Host)
        .where(up, sa.or_(sa.false(), *late))
        .options(
            parts.selectinload(model.Deployable.attributes),
            parts.selectinload(model.Deployable.attach_handles),
        )
        .with_for_update(skip_locked=True)
    )
    for host in session.scalars(hosts):
        LOG.warning('Host %s is down: it last reported at %s', host.name, host.seen_at)
        host.silent = True
        outbox.announce(session, [part for device in host.found for part in device.deployables])
