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
import dataclasses
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


@dataclasses.dataclass
class Trial:
    """A call of :meth:`Driver.validate` whose outcome no scan has taken yet."""

    future: concurrent.futures.Future[str | None]
    #: whether the card has looked well in each scan since
    valid: bool = True


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
        # The trial of each of them whose outcome is still to come.
        self._trials: dict[str, Trial] = {}
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
        try:
            found = self.discover()
        except Exception:
            # This scan has found no card well.
            self._judge([])
            raise
        listed = found if isinstance(found, list) else ()
        devices = [device for device in listed if isinstance(device, Device)]
        self._judge([device for device in devices if not self._describe(device)])
        return found, self._notes

    def validate(self, device: Device) -> str | None:
        """Try a card that was critical and looks well again; None if it may come back.

        It is called in each scan that finds such a card well, until it returns None: till then the
        card stays critical, with the returned reason.  It runs in a thread of its own, and a scan
        waits 5 s for all of them: the reason of one that has not ended by then is
        ``validation_timeout``, and the card is not tried again before it ends.  The next scan takes
        its outcome, if all scans since it began found the card well.  A tenant may still hold the
        card, so a trial only reads, and must not disturb one.  What was critical before the agent
        started is not known here.

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
        for address in self._trials.keys() - trials.keys():
            self._trials[address].valid = False
        # One that runs since an earlier scan is not waited for again.
        begun = [self._begin(trials[address]) for address in trials if self._is_over(address)]
        concurrent.futures.wait(begun, TRIALS)
        for address in trials:
            reason = self._outcome(address)
            if reason is None:
                self._doubted.discard(address)
            else:
                trials[address].health, trials[address].health_reason = CRITICAL, reason

    def _is_over(self, address: str) -> bool:
        """Whether no trial of a card runs or has an outcome for this scan."""
        last = self._trials.get(address)
        return last is None or last.future.done() and not last.valid

    def _begin(self, device: Device) -> concurrent.futures.Future[str | None]:
        validate = functools.partial(self.validate, device)
        trial = Trial(threads.call(f'validate-{device.address}', validate))
        self._trials[str(device.address)] = trial
        return trial.future

    def _outcome(self, address: str) -> str | None:
        """Why a card has not passed its trial; None if it has."""
        trial = self._trials[address]
        if not (trial.future.done() and trial.valid):
            return 'validation_timeout'
        del self._trials[address]
        try:
            return trial.future.result()
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
