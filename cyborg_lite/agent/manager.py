# SPDX-License-Identifier: Apache-2.0
"""What an agent does: report its host, now and then and when it is asked."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import typing
import uuid

from oslo_config import cfg
from oslo_log import log
import oslo_messaging as messaging

from cyborg_lite import context
from cyborg_lite import driver
from cyborg_lite import rpc
from cyborg_lite import worker
from cyborg_lite.agent import drivers
from cyborg_lite.agent import processes

LOG = log.getLogger(__name__)

#: How long the end of a report is waited for, in seconds.
PATIENCE = 5
#: How soon a report that no conductor took is sent again, in seconds.
RETRY = 1


class Manager:
    """The agent of one host."""

    target = messaging.Target(version=rpc.VERSION)

    def __init__(self, conf: cfg.ConfigOpts, bus: rpc.Peers, host: driver.Host) -> None:
        self._conf = conf
        self._bus = bus
        self.host = host
        self._worker = worker.Worker(f'report-{host.name}', self._work)
        self._drivers = drivers.Drivers(conf, host, woken=self._worker.wake)
        self._boot_id = processes.boot()
        #: tells an agent that was started anew from two that run at once
        self.id = str(uuid.uuid4())
        #: set once the conductor knows what the drivers found first, or has refused it
        self.reported = threading.Event()
        #: the drivers that have found devices
        self.finding: frozenset[str] = frozenset()
        # A report that is asked for and one that is due must not pass each other.
        self._reporting = threading.Lock()
        self._due = 0.0
        #: the kind of error for which no conductor took the last report
        self._failure: type[Exception] | None = None
        self._taken = False

    @messaging.expose
    def report(self, ctxt: context.RequestContext | None = None) -> dict[str, typing.Any]:
        """Scan the host and report it; returns how each driver is."""
        return self._report(ctxt or context.service(), anew=True)

    def _report(self, ctxt: context.RequestContext, anew: bool) -> dict[str, typing.Any]:
        with self._reporting:
            findings = self._drivers.discover(anew)
            self.finding = frozenset(n for n, s in findings.drivers.items() if s.devices)
            content: dict[str, typing.Any] = {
                'devices': [device.facts() for device in findings.devices],
                'drivers': {n: s.facts() for n, s in findings.drivers.items()},
            }
            text = json.dumps(content, sort_keys=True).encode()
            interval = self._conf.agent.report_interval
            # If no answer comes, the next report does in time to say that the host is up.
            conductor = self._bus.receiver(ctxt, timeout=interval)
            conductor.report(
                host=self.host.name,
                machine=self.host.machine,
                agent=self.id,
                boot_id=self._boot_id,
                sequence=_sequence(),
                interval=interval,
                digest=hashlib.sha256(text).hexdigest(),
                looks=findings.looks,
                **content,
            )
            return typing.cast('dict[str, typing.Any]', content['drivers'])

    def start(self) -> None:
        self._worker.start()

    def stop(self) -> None:
        """End; a report in hand is not waited for for long, as the next one says it all again."""
        self._worker.stop()
        self._worker.join(PATIENCE)

    def _work(self) -> float:
        """Report the host, and ask its drivers if that is due; returns when to do so again.

        It is done before it is due when a late driver has answered, or the last report was not
        taken: then what is known is reported.
        """
        begun = time.monotonic()
        anew = begun >= self._due
        if anew:
            # By the beginning: a report that took long, or was lost, makes the next one no later.
            self._due = begun + self._conf.agent.report_interval
        taken = self._try(anew)
        if taken and self._drivers.settled:
            self.reported.set()
        soon = self._drivers.deadline if taken else time.monotonic() + RETRY
        return max(0.0, min(self._due, soon) - time.monotonic())

    def _try(self, anew: bool) -> bool:
        """Report; returns False when no conductor took it."""
        try:
            self._report(context.service(), anew)
        except (messaging.MessagingException, messaging.MessageUndeliverable) as error:
            self._wait_for_conductor(error)
            return False
        except Exception:
            # A conductor was there, and failed: the same will not do better a second later.
            LOG.exception('Host %s could not be reported', self.host.name)
            self.reported.set()
        else:
            if self._failure or not self._taken:
                LOG.info('Host %s is reported: a conductor took the report', self.host.name)
            self._failure, self._taken = None, True
        return True

    def _wait_for_conductor(self, error: Exception) -> None:
        """Log what is waited for, once."""
        if type(error) is not self._failure:
            LOG.warning(
                'Host %s waits for a conductor to report to, and tries again every %d s: %r',
                *(self.host.name, RETRY, error),
            )
        self._failure = type(error)


def _sequence() -> int:
    """Nanoseconds since boot: it grows over restarts of the agent, whatever the clock does."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
