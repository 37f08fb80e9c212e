# SPDX-License-Identifier: Apache-2.0
"""Since when each card of a host does no work.

A card counts as idle if it has told 0 % in every look for long enough. A look at which it tells
nothing ends that: what is unknown is not idle. A restarted agent begins anew.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import time

from oslo_log import log
from oslo_utils import timeutils

from cyborg_lite import model
from cyborg_lite.agent import nodes
from cyborg_lite.agent import processes
from cyborg_lite.driver import pids

LOG = log.getLogger(__name__)

#: By how much the clock may differ from that of the last look without another time being told: an
#: unchanged report is cheap.
DRIFT = datetime.timedelta(minutes=1)
#: What identifies a card at its address.
IDENTITY = ('address', 'vendor', 'model', 'serial')


@dataclasses.dataclass
class Spell:
    """A time in which a card does no work."""

    #: when it began, by a clock that nobody sets
    began: float
    #: when it began, as it is told
    told: datetime.datetime | None = None

    def since(self, now: float) -> datetime.datetime:
        """When it began, by the clock of the machine; the same in each look, unless that is set."""
        past = datetime.timedelta(seconds=int(now - self.began))
        since = timeutils.utcnow().replace(microsecond=0) - past
        if self.told is None or abs(since - self.told) > DRIFT:
            self.told = since
        return self.told


class Idling:
    """Remembers the looks at the cards of one host."""

    def __init__(self) -> None:
        self._spells: dict[tuple[str | None, ...], Spell] = {}

    def note(
        self, devices: collections.abc.Iterable[model.Device], finding: nodes.Finding, after: int
    ) -> None:
        """Set ``idle_since`` and ``used`` of the devices of a look.

        :param finding: the device nodes of this machine; those of a described host have none.
        :param after: how long a card has to do no work, in seconds; 0 for never.
        """
        now = time.monotonic()
        spells = {}
        idle = []
        for device in devices:
            device.idle_since = device.used = None
            if device.utilization == 0 and after:
                key = tuple(getattr(device, name) for name in IDENTITY)
                spells[key] = spell = self._spells.get(key, Spell(now))
                if now - spell.began >= after:
                    device.idle_since = spell.since(now)
                    idle.append(device)
        self._spells = spells
        if idle:
            _note_use(idle, finding)


def _note_use(idle: list[model.Device], finding: nodes.Finding) -> None:
    """Set whether a process uses each of these devices, as far as it can be known.

    A process may keep its data on a card that does no work.
    """
    try:
        used = _used(finding) if pids.sees_all() else {}
    except Exception:
        # The devices are reported nevertheless.
        LOG.exception('The processes that use idle devices cannot be seen')
        used = {}
    for device in idle:
        # Where others open the node, too, only a list tells.
        if device.address not in finding.listed or device.processes is not None:
            device.used = used.get(device.address)


def _used(finding: nodes.Finding) -> dict[str, bool]:
    """By the address of each card whose use shows, whether a process uses it."""
    found = dict.fromkeys(finding.used.values(), False)
    for use in processes.uses(finding.used) if finding.used else ():
        for address in {finding.used[node] for node in use.nodes}:
            if use.process.pid in finding.listed.get(address, (use.process.pid,)):
                found[address] = True
    return found
