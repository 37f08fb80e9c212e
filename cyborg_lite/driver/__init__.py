# SPDX-License-Identifier: Apache-2.0
"""All that a driver may import: its base class, its host, and the types that it returns.

A driver is a class with ``discover()``.  It reads its host through ``self.host`` and returns a
Device for each card, with its Deployables and an AttachHandle for each accelerator::

    class AcmeNpu(pci.PciDriver):
        \"\"\"Acme cards.\"\"\"

        name, type, resource_class = 'acme_npu', 'AICHIP', 'CUSTOM_NPU'
        models = {('abcd', '0001'): 'Acme One'}

An entry point in the group ``cyborg_lite.drivers`` registers it with the agent.
"""

from __future__ import annotations

import abc
import concurrent.futures
import functools
import re

import os_traits
from oslo_config import cfg

from cyborg_lite import contract
from cyborg_lite.driver import sysfs
from cyborg_lite.driver import threads
from cyborg_lite.driver.description import HEALTH
from cyborg_lite.driver.description import HostError
from cyborg_lite.driver.host import Host
from cyborg_lite.driver.host import NoAnswer
from cyborg_lite.driver.host import ToolError
from cyborg_lite.model import AttachHandle
from cyborg_lite.model import Deployable
from cyborg_lite.model import Device
from cyborg_lite.model.health import CRITICAL
from cyborg_lite.model.health import Health
from cyborg_lite.model.health import LEVELS
from cyborg_lite.model.health import OK
from cyborg_lite.model.health import unanswered
from cyborg_lite.model.health import WARNING
from cyborg_lite.model.health import why_not_ok
from cyborg_lite.model.health import worst

__all__ = (
    'AttachHandle',
    'Deployable',
    'Device',
    'Driver',
    'Health',
    'Host',
    'HostError',
    'ToolError',
    'contract',
    'trait',
    'why_not_ok',
    'worst',
)


#: The maximum number of notes of one scan, and of characters in each.
NOTES, NOTE = 16, 200
#: How long one scan waits for trials of cards, in seconds.
TRIALS = 5.0


class Driver(abc.ABC):
    """Finds the accelerators of one kind in a host."""

    #: the name of the driver in ``[agent] enabled_drivers`` and in its entry point
    name: str

    def __init__(self, host: Host, conf: cfg.ConfigOpts) -> None:
        self.host = host
        self.conf = conf
        self._notes: list[str] = []
        #: the health of a device of which no tool tells it in this scan: a reason if one hangs
        self.untold = Health()
        # The addresses of cards that were critical and have not passed validate() since.
        self._doubted: set[str] = set()
        # The last trial of each of them.
        self._trials: dict[str, concurrent.futures.Future[str | None]] = {}
        #: whether the last scan looked at all cards, so that an unreported card is absent
        self.complete = True

    @abc.abstractmethod
    def discover(self) -> list[Device]:
        """Return a Device for each card found; an empty list if there is none.

        Names of deployables must be unique within the host; the service puts the host's name
        before them.  If this method raises, the devices found before stay, and the driver is shown
        as degraded with the error's text.  If all cards were found but some of their facts could
        not be read, use :meth:`note`.
        """

    def note(self, text: str | ToolError, complete: bool = True) -> None:
        """Report what ``discover()`` could not read, while it still returns the devices.

        The driver is shown as degraded, with the text as the reason.  Its devices are reported,
        and a device that is not among them counts as absent.  Use the same words each time:
        another text is another report.  If it is the error of a tool that did not answer in time,
        this is the reason of each unknown health in this scan.

        :param text: what could not be read, or the error of a tool
        :param complete: False if some cards could not be searched for: then no card counts as
            absent
        """
        self.complete = self.complete and complete
        if isinstance(text, NoAnswer):
            self.untold = unanswered(text.seconds)
        text = str(text)[:NOTE]
        if text not in self._notes and len(self._notes) < NOTES:
            self._notes.append(text)

    def look(self) -> tuple[list[Device], list[str]]:
        """The result and the notes of ``discover()``: the agent calls this."""
        self._notes, self.complete, self.untold = [], True, Health()
        found = self.discover()
        listed = found if isinstance(found, list) else ()
        devices = [device for device in listed if isinstance(device, Device)]
        self._judge([device for device in devices if not self._describe(device)])
        return found, self._notes

    def validate(self, device: Device) -> str | None:
        """Try a card that was critical and looks well again; None if it may come back.

        It is called in each scan that finds such a card well, until it returns None: till then the
        card stays critical, with the returned reason.  It runs in a thread of its own, and all
        trials of a scan have 5 s together: the reason of one that has not ended by then is
        ``validation_timeout``, and the card is not tried again before it ends.  A tenant may still
        hold the card, so a trial only reads, and must not disturb one.  What was critical before
        the agent started is not known here.

        :returns: a reason, words of a-z and 0-9 with one ``_`` between two.  If it raises, the
            reason is ``validation_failed``, and the driver is shown as degraded with the error.
        """
        return None

    def _judge(self, devices: list[Device]) -> None:
        """Keep devices critical that were, until they pass :meth:`validate`."""
        trials = {}
        for device in devices:
            address = str(device.address)
            if device.health == CRITICAL:
                self._doubted.add(address)
            elif address in self._doubted and device.health in (OK, WARNING):
                trials[address] = device
        begun = {address: self._begin(address, device) for address, device in trials.items()}
        concurrent.futures.wait([trial for trial in begun.values() if trial], TRIALS)
        for address, trial in begun.items():
            reason = self._outcome(address, trial)
            if reason is None:
                self._doubted.discard(address)
            else:
                trials[address].health, trials[address].health_reason = CRITICAL, reason

    def _begin(self, address: str, device: Device) -> concurrent.futures.Future[str | None] | None:
        """Begin a trial; None while the last one of this card runs, whose outcome will be stale."""
        last = self._trials.get(address)
        if last and not last.done():
            return None
        trial = functools.partial(self.validate, device)
        self._trials[address] = threads.call(f'validate-{address}', trial)
        return self._trials[address]

    def _outcome(
        self, address: str, trial: concurrent.futures.Future[str | None] | None
    ) -> str | None:
        """Why a card has not passed its trial; None if it has."""
        if trial is None or not trial.done():
            return 'validation_timeout'
        try:
            return trial.result()
        except BaseException as error:
            self.note(f'validate() of {address} failed: {error!r}')
            return 'validation_failed'

    def _describe(self, device: Device) -> bool:
        """Give a device the health that the description of its host has for it, if it has one."""
        if not self.host.recorded or not sysfs.BDF.fullmatch(str(device.address)):
            return False
        level, _, reason = (self.host.tree.text(HEALTH / device.address) or '').partition(' ')
        if level in LEVELS:
            device.health, device.health_reason = level, reason or None
        return level in LEVELS


def trait(*words: str) -> str | None:
    """The custom trait of the words, ``CUSTOM_...``; None if they make no valid trait.

    An unusable string from hardware drops only this trait, not the device.
    Source: os-traits, ``[A-Z0-9_]``, at most 255 characters.
    """
    # Without an unusable word, the trait of the other words would be too general.
    if not words or not all(re.search('[A-Za-z0-9]', word) for word in words):
        return None
    name = os_traits.normalize_name('_'.join(words))
    return name if len(name) <= 255 else None
