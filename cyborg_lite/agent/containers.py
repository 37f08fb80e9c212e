# SPDX-License-Identifier: Apache-2.0
"""The containers of leases: conductors show them to those who ask who holds what."""

from __future__ import annotations

import collections.abc
import typing

from oslo_log import log
import oslo_messaging as messaging

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import rpc

if typing.TYPE_CHECKING:
    from cyborg_lite.agent import leases as leases_

LOG = log.getLogger(__name__)

#: The timeout of a call, in seconds: the ends of other leases wait for it.
TIMEOUT = 5
#: The maximum number of leases in one call.
MOST = 1000


def tell(
    bus: rpc.Peers, leases: collections.abc.Iterable[leases_.Lease], host: str, agent: str
) -> None:
    """Tell a conductor in which containers leases are, where its rows have others.

    Rows of conductors of the release before have none: these are not told. A call that fails is
    repeated when the leases are looked at again, within a minute.
    """
    changed = [each for each in leases if each.active and not each.over and _is_news(each)][:MOST]
    if not changed:
        return
    found = {each.uuid: each.container for each in changed}
    peer = bus.leases(context.service(), timeout=TIMEOUT, version=rpc.CONTAINERS)
    try:
        peer.contain(containers=found, host=host, agent=agent)
    except (messaging.MessagingException, exception.CyborgError) as error:
        LOG.info('The containers of leases of host %s cannot be told yet: %s', host, error)
        return
    for each in changed:
        each.row = each.row | {'container': each.container}


def _is_news(lease: leases_.Lease) -> bool:
    return bool(lease.row.get('container', lease.container) != lease.container)
