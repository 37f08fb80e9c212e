# SPDX-License-Identifier: Apache-2.0
"""Whether a report comes from the host that it names: any agent could name it."""

from __future__ import annotations

import hashlib
import typing

from oslo_log import log

from cyborg_lite import model

LOG = log.getLogger(__name__)

#: The longest interval, in seconds, by which it is judged whether a host is up when another machine
#: reports under its name.
HEARD = 60
#: By host, the last boot whose reports were refused: the log names each once.
_refused: dict[str, str] = {}


class Claim(typing.Protocol):
    """What a report says of where it comes from: see inventory.Report."""

    def __getitem__(self, key: str, /) -> typing.Any: ...

    def get(self, key: str, /) -> typing.Any: ...


def is_another(host: model.Host, report: Claim) -> bool:
    """Whether another machine reports under the name of a host.

    An agent on the bus may name any host, but does not know the secret of its agent. The boot
    proves nothing, and the identity of the machine little: each user of the machine can read them.
    Where no secret is known, reports of a machine that replaces another are taken once the old one
    is down.
    """
    if host.renamed_to or (may_be_same(host, report) and _has_identity(host, report)):
        return False
    # The reported interval is bounded: the first report of a name may have been forged.
    down = host.silent or host.seen_at < host.alive_since(min(host.interval, HEARD))
    if down and host.secret is None:
        return False
    if _refused.get(host.name) != report['boot_id']:
        LOG.warning(
            'Another machine reports as host %s, %s: its reports are dropped. Give each machine '
            'a name of its own. One that replaces the host is heard once that is %s',
            host.name,
            'which is up' if host.secret is None else 'or its agent with another secret',
            'down' if host.secret is None else 'deleted or renamed',
        )
    _refused[host.name] = report['boot_id']
    return True


def may_be_same(host: model.Host, report: Claim) -> bool:
    """Whether a report is of the agent that has reported a host, as far as secrets tell: an agent
    of the release before has none.
    """
    return host.secret in (None, digest(report))


def _has_identity(host: model.Host, report: Claim) -> bool:
    """Whether a report is of the machine of a host, as far as it is known; a secret says more."""
    return host.secret is not None or host.machine in (None, report.get('machine'))


def digest(report: Claim) -> str | None:
    """The stored form of the secret in a report: readers of the database cannot report."""
    told = report.get('secret')
    return hashlib.sha256(told.encode()).hexdigest() if told else None
