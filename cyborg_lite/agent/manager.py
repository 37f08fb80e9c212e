# SPDX-License-Identifier: Apache-2.0
"""What an agent does: report its host, now and then and when it is asked."""

from __future__ import annotations

import dataclasses
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
from cyborg_lite import rpc
from cyborg_lite.agent import drivers

LOG = log.getLogger(__name__)

#: How long the end of a report is waited for, in seconds.
PATIENCE = 5


class Manager:
    """The agent of one host."""

    target = messaging.Target(version=rpc.VERSION)

    def __init__(self, conf: cfg.ConfigOpts, bus: rpc.Bus, host: driver.Host) -> None:
        self._conf = conf
        self._bus = bus
        self.host = host
        self._drivers = drivers.Drivers(conf, host)
        self._boot_id = _boot_id()
        #: tells an agent that was started anew from two that run at once
        self._id = str(uuid.uuid4())
        self._stopped = threading.Event()
        #: set once a first report was tried
        self.reported = threading.Event()
        # A report that is asked for and one that is due must not pass each other.
        self._reporting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f'report-{host.name}', daemon=True)

    @messaging.expose
    def report(self, ctxt: context.RequestContext | None = None) -> dict[str, typing.Any]:
        """Scan the host and report it; returns how each driver is."""
        with self._reporting:
            findings = self._drivers.discover()
            content: dict[str, typing.Any] = {
                'devices': [device.facts() for device in findings.devices],
                'drivers': {n: dataclasses.asdict(s) for n, s in findings.drivers.items()},
            }
            text = json.dumps(content, sort_keys=True).encode()
            interval = self._conf.agent.report_interval
            # If no answer comes, the next report does in time to say that the host is up.
            conductor = self._bus.receiver(ctxt or context.service(), timeout=interval)
            conductor.report(
                host=self.host.name,
                machine=self.host.machine,
                agent=self._id,
                boot_id=self._boot_id,
                sequence=_sequence(),
                interval=interval,
                digest=hashlib.sha256(text).hexdigest(),
                **content,
            )
            return typing.cast('dict[str, typing.Any]', content['drivers'])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End; a report in hand is not waited for for long, as the next one says it all again."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(PATIENCE)

    def _run(self) -> None:
        wait = 0.0
        while not self._stopped.wait(wait):
            begun = time.monotonic()
            try:
                self.report()
            except (messaging.MessagingException, messaging.MessageUndeliverable) as error:
                LOG.warning('Host %s could not be reported: %r', self.host.name, error)
            except Exception:
                LOG.exception('Host %s could not be reported', self.host.name)
            self.reported.set()
            # By the beginning: a report that took long, or was lost, makes the next one no later.
            wait = max(0.0, begun + self._conf.agent.report_interval - time.monotonic())


def _boot_id() -> str:
    """The kernel's name for this boot (proc(5), /proc/sys/kernel/random/boot_id)."""
    return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()


def _sequence() -> int:
    """Nanoseconds since boot: it grows over restarts of the agent, whatever the clock does."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
