# SPDX-License-Identifier: Apache-2.0
"""The agent of a host: it reports the host periodically and on request."""

from __future__ import annotations

import collections.abc
import hashlib
import json
import pathlib
import threading
import time
import typing
import uuid

from oslo_config import cfg
from oslo_log import log
import oslo_messaging as messaging

from cyborg_lite import context
from cyborg_lite import driver
from cyborg_lite import exception
from cyborg_lite import rpc
from cyborg_lite import worker
from cyborg_lite.agent import access
from cyborg_lite.agent import drivers
from cyborg_lite.agent import idling
from cyborg_lite.agent import leases
from cyborg_lite.agent import nodes
from cyborg_lite.agent import processes
from cyborg_lite.agent import secret
from cyborg_lite.agent import specifications
from cyborg_lite.agent import terminals

LOG = log.getLogger(__name__)

#: How long a stop waits for a report in progress, in seconds.
PATIENCE = 5
#: The time after which a report is sent again that no conductor accepted, in seconds.
RETRY = 1
#: What is over when a neighbour is back: the broker, a conductor, or its database.
AWAY = (messaging.MessagingException, messaging.MessageUndeliverable, exception.DatabaseAway)


class Manager:
    """The agent of one host."""

    target = messaging.Target(version=rpc.VERSION)

    def __init__(self, conf: cfg.ConfigOpts, bus: rpc.Peers, host: driver.Host) -> None:
        """
        :raises cyborg_lite.exception.Refused: when the file of the secret, or that of the device
            nodes, cannot be used.
        """
        self._conf = conf
        self._bus = bus
        self.host = host
        self._worker = worker.Worker(f'report-{host.name}', self._work)
        self._drivers = drivers.Drivers(conf, host, woken=self._worker.wake)
        self._boot_id = processes.boot()
        self._secret = secret.load(conf)
        #: the access to the nodes of this machine; None if it is advisory
        self.access = None if host.recorded else access.load(conf)
        directory = None if host.recorded else conf.agent.cdi_directory
        #: the CDI files of the leases of this machine; None if there are none
        self.specifications = (
            specifications.Specifications(pathlib.Path(directory)) if directory else None
        )
        #: distinguishes a restarted agent from two agents of one host
        self.id = str(uuid.uuid4())
        #: set once the conductor has accepted or refused the first findings of the drivers
        self.reported = threading.Event()
        #: the last finding of the drivers
        self.finding = nodes.Finding()
        #: returns who uses which card without a lease, by its address: see leases.rogues
        self.rogues: collections.abc.Callable[[nodes.Finding], terminals.Rogues] = lambda _: {}
        #: whether it is known which processes have leases: see leases.Leases
        self.observes = False
        #: compares the leases of this host with those of conductors soon
        self.compare: collections.abc.Callable[[], None] = lambda: None
        #: returns the leases of this host
        self.leases: collections.abc.Callable[[], list[leases.Lease]] = list
        #: returns whether the leases of an earlier start of the agent are known
        self.compared: collections.abc.Callable[[], bool] = lambda: True
        #: returns the addresses of the cards that others than leases hold, within a timeout
        self.held: terminals.Held = lambda _: frozenset()
        self._known_rogues: dict[str, str] = {}
        # The leases whose processes are not among the rogues; None if that is not known.
        self._left_out: list[str] | None = None
        # The sequence of the last report that was accepted, or the moment of a later call of
        # look(); and what it was when the look began of which is reported.
        self._heard = self._looked_after = 0
        # How many scans of each driver a conductor knows.
        self._looks: dict[str, int] = {}
        # Guards _heard: calls of look() have threads of their own.
        self._hearing = threading.Lock()
        self._asked = threading.Event()
        self._notices = terminals.Notices()
        self._reminders = terminals.Reminders()
        self._idling = idling.Idling()
        # Serializes periodic and requested reports.
        self._reporting = threading.Lock()
        self._due = 0.0
        #: the class of the error that the last report failed with
        self._failure: type[Exception] | None = None
        self._taken = False

    @messaging.expose
    def report(self, ctxt: context.RequestContext | None = None) -> dict[str, typing.Any]:
        """Scan the host and report it; returns the state of each driver."""
        return self._report(ctxt or context.service(), anew=True)

    @messaging.expose
    def look(self, ctxt: context.RequestContext | None = None) -> None:
        """Report soon who uses which card, as seen after this call."""
        self.compare()
        self.look_soon()

    def look_soon(self) -> None:
        """Scan and report the host soon."""
        self._hear(_sequence())
        self._asked.set()
        self._worker.wake()

    def _hear(self, moment: int) -> None:
        """Note a moment; a look that begins later tells what is so after it."""
        with self._hearing:
            self._heard = max(self._heard, moment)

    def _report(self, ctxt: context.RequestContext, anew: bool) -> dict[str, typing.Any]:
        with self._reporting:
            if anew:
                # Some drivers list the processes of a card in their scan.
                self._looked_after = self._heard
            findings = self._drivers.discover(anew, moment=self._looked_after)
            finding = [name for name, state in findings.drivers.items() if state.devices]
            self.finding = nodes.find(finding, () if self.host.recorded else findings.devices)
            rogues = self._look_at_processes()
            for device in findings.devices:
                device.rogue = self._known_rogues.get(device.address)
            idle_after = self._conf.agent.idle_after
            self._idling.note(findings.devices, self.finding, idle_after)
            content: dict[str, typing.Any] = {
                'devices': [device.facts() for device in findings.devices],
                'drivers': {n: s.facts() for n, s in findings.drivers.items()},
                'access': access.shown(self.access),
                'idle_after': idle_after,
                'observes': self.observes and self._conf.agent.withhold_rogues,
            }
            text = json.dumps(content, sort_keys=True).encode()
            interval = self._conf.agent.report_interval
            # If no answer comes, the next report still comes in time to keep the host up.
            conductor = self._bus.receiver(ctxt, timeout=interval)
            sequence = _sequence()
            conductor.report(
                host=self.host.name,
                machine=self.host.machine,
                agent=self.id,
                secret=self._secret,
                boot_id=self._boot_id,
                sequence=sequence,
                interval=interval,
                digest=hashlib.sha256(text).hexdigest(),
                looks=findings.looks,
                samples=findings.samples,
                leases=self._left_out,
                looked_after=min([self._looked_after, *self._begun_after(findings)]),
                **content,
            )
            self._hear(sequence)
            self._looks = findings.looks
            # Afterwards: the conductor knows the agent by now.
            self._tell_users(rogues)
            return typing.cast('dict[str, typing.Any]', content['drivers'])

    def _begun_after(self, findings: drivers.Findings) -> list[int]:
        """The moments before the scans that no conductor knows: a late one began long ago."""
        looks = findings.looks.items()
        return [findings.after[name] for name, look in looks if look != self._looks.get(name)]

    def _look_at_processes(self) -> terminals.Rogues:
        """Update who uses which card without a lease, which is returned.

        After a failure the last answer stays, and nothing is returned.
        """
        withheld = self._conf.agent.withhold_rogues
        try:
            # Before the look: one that ends meanwhile is left out by the next.
            left_out = self._known_leases() if withheld else []
            found = self.rogues(self.finding) if withheld else {}
            self._known_rogues = {
                address: processes.listed([*uses]) for address, uses in found.items()
            }
        except Exception:
            # The devices are reported nevertheless.
            LOG.exception('The processes of host %s cannot be seen', self.host.name)
            self._left_out = None
            return {}
        self._left_out = left_out
        return found

    def _known_leases(self) -> list[str] | None:
        """The uuids of the leases of this host, and of the reservations that they are of."""
        if not self.compared():
            return None
        named = [(each.uuid, each.row.get('reservation_uuid')) for each in self.leases()]
        return sorted({uuid for pair in named for uuid in pair if uuid})

    def _tell_users(self, rogues: terminals.Rogues) -> None:
        """Tell users on their terminals; a failure does not affect the report."""
        try:
            self._reminders.look(self.leases())
            # Before, a process of such a lease looks like a rogue.
            tells = self._conf.agent.tell_rogues and self.compared()
            self._notices.look(rogues if tells else {}, self.held)
        except (*AWAY, exception.CyborgError) as error:
            LOG.info('Users of host %s are told at a later report: %s', self.host.name, error)
        except Exception:
            LOG.exception('The users of host %s cannot be told', self.host.name)

    def start(self) -> None:
        self._worker.start()

    def stop(self) -> None:
        """Stop; the wait for a report in progress is short, as the next report repeats all."""
        self._worker.stop()
        self._worker.join(PATIENCE)

    def _work(self) -> float:
        """Report the host, and scan it if that is due; returns the time until the next report.

        A report without a new scan follows early if a late driver has answered, or if no conductor
        accepted the last report.
        """
        begun = time.monotonic()
        if asked := self._asked.is_set():
            # Not otherwise: a call between both would be forgotten.
            self._asked.clear()
        anew = begun >= self._due or asked
        if anew:
            # Counted from the start: a slow or lost report does not delay the next.
            self._due = begun + self._conf.agent.report_interval
        taken = self._try(anew)
        if taken and self._drivers.settled:
            self.reported.set()
        soon = self._drivers.deadline if taken else time.monotonic() + RETRY
        return max(0.0, min(self._due, soon) - time.monotonic())

    def _try(self, anew: bool) -> bool:
        """Report; returns False if no conductor accepted it."""
        try:
            self._report(context.service(), anew)
        except AWAY as error:
            self._wait_for_conductor(error)
            return False
        except Exception:
            # A conductor answered and failed: a retry a second later would fail, too.
            LOG.exception('Host %s could not be reported', self.host.name)
            self.reported.set()
        else:
            if self._failure or not self._taken:
                LOG.info('Host %s is reported: a conductor took the report', self.host.name)
            self._failure, self._taken = None, True
        return True

    def _wait_for_conductor(self, error: Exception) -> None:
        """Log once what the agent waits for."""
        if type(error) is not self._failure:
            LOG.warning(
                'Host %s waits for a conductor to report to, and tries again every %d s: %r',
                *(self.host.name, RETRY, error),
            )
        self._failure = type(error)


def _sequence() -> int:
    """Nanoseconds since boot: they grow over restarts of the agent, and ignore clock changes."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
