# SPDX-License-Identifier: Apache-2.0
"""When the queue of allocations is served: each release of accelerators writes a message.

The message is written in the transaction that frees, so that a conductor that dies loses nothing.
"""

from __future__ import annotations

import collections.abc

from sqlalchemy import orm

from cyborg_lite import model
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import outbox
from cyborg_lite.db import engine
from cyborg_lite.db import queue

#: There is one message: its sender looks at all queues.
MESSAGE: dict[str, model.Facts] = {'all': {}}
#: The same where an allocation has joined; and the message to look again, in so many seconds.
JOINED: dict[str, model.Facts] = {'all': {'joined': True}}
AGAIN: dict[str, model.Facts] = {'again': {}}
AFTER = 1
#: The message to look when the next reservation starts.
START: dict[str, model.Facts] = {'start': {'late': True}}
#: The message about all where a reservation has not started in time.
LATE: dict[str, model.Facts] = {'all': {'late': True}}


def wake(session: orm.Session) -> None:
    """Have a conductor serve those that wait, if any do, in a transaction after this one."""
    if not outbox.tells(session, outbox.QUEUE):
        return
    queued, late = queue.any_waits(session)
    if queued or late:
        outbox.put(session, outbox.QUEUE, LATE if late else MESSAGE)


def joined(session: orm.Session) -> None:
    """Have a conductor look whether what has joined can be served."""
    outbox.put(session, outbox.QUEUE, JOINED)


def look_again(session: orm.Session) -> None:
    """Have a conductor look once more for what has joined.

    A transaction that frees something and has not seen that anybody waits may be committed after
    the first look. With one writer at a time there is no such race.
    """
    if not engine.has_one_writer(session.get_bind()):
        outbox.put(session, outbox.QUEUE, AGAIN, AFTER)


def look_at_start(session: orm.Session, after: float) -> None:
    """Have a conductor look in so many seconds: a reservation starts then."""
    outbox.put(session, outbox.QUEUE, START, after)


def freed(
    session: orm.Session,
    arqs: collections.abc.Collection[model.ARQ],
    affected: collections.abc.Iterable[str],
    deleted: bool = False,
) -> None:
    """Tell that requests, as they were read, hold nothing any more.

    :param affected: the hosts where they excluded what is free.
    :param deleted: whether they also count for no quota any more.
    """
    outbox.put_all(session, hosts.changed(affected))
    counted = deleted and any(arq.awaited for arq in arqs)
    if counted or any(arq.attach_handle_id is not None for arq in arqs):
        wake(session)
