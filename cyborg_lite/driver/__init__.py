# SPDX-License-Identifier: Apache-2.0
"""All that a driver may import: what it is, what it reads, what it returns.

A driver is a class with ``discover()``.  It reads its host through ``self.host`` and returns
a Device for each card, with the Deployables that are given out of it and an AttachHandle for
each accelerator::

    class AcmeNpu(pci.PciDriver):
        \"\"\"Acme cards.\"\"\"

        name, type, resource_class = 'acme_npu', 'AICHIP', 'CUSTOM_NPU'
        models = {('abcd', '0001'): 'Acme One'}

An entry point in the group ``cyborg_lite.drivers`` makes it known to the agent.
"""

from __future__ import annotations

import abc
import re

import os_traits
from oslo_config import cfg

from cyborg_lite import contract
from cyborg_lite.driver.description import HostError
from cyborg_lite.driver.host import Host
from cyborg_lite.driver.host import ToolError
from cyborg_lite.model import AttachHandle
from cyborg_lite.model import Deployable
from cyborg_lite.model import Device
from cyborg_lite.model.health import Health
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
    'worst',
)


#: The most that a driver may note of one look: texts, and characters of each.
NOTES, NOTE = 16, 200


class Driver(abc.ABC):
    """Finds the accelerators of one kind in a host."""

    #: the name by which ``[agent] enabled_drivers`` and the entry point know the driver
    name: str

    def __init__(self, host: Host, conf: cfg.ConfigOpts) -> None:
        self.host = host
        self.conf = conf
        self._notes: list[str] = []
        #: whether the last look was at all cards, so that one that it lacks is not there
        self.complete = True

    @abc.abstractmethod
    def discover(self) -> list[Device]:
        """Return a Device for each card found: an empty list where there is none.

        Names of deployables need be unique within the host only; the service puts the host's
        name before them.  May raise: then what was found before stays as it is, and the
        driver is shown as degraded with the error's text.  Where all cards were found and only
        something about them could not be learnt, see :meth:`note`.
        """

    def note(self, text: str, complete: bool = True) -> None:
        """Say what ``discover()`` could not learn, and return the devices all the same.

        The driver is shown as degraded, with the text as the reason.  Its devices are reported,
        and one that is not among them counts as absent.  Use the same words each time: a text
        that differs is a report that differs.

        :param complete: False if some cards could not be looked for: then none counts as absent
        """
        self.complete = self.complete and complete
        text = text[:NOTE]
        if text not in self._notes and len(self._notes) < NOTES:
            self._notes.append(text)

    def look(self) -> tuple[list[Device], list[str]]:
        """What ``discover()`` returns, and what it noted meanwhile: the agent calls this."""
        self._notes, self.complete = [], True
        return self.discover(), self._notes


def trait(*words: str) -> str | None:
    """The custom trait that the words spell, ``CUSTOM_...``; None if they spell none.

    A string from hardware that makes no trait costs this one trait, not the device.
    Source: os-traits, ``[A-Z0-9_]``, at most 255 characters.
    """
    # A word that spells nothing would leave a trait of the other words, which says too much.
    if not words or not all(re.search('[A-Za-z0-9]', word) for word in words):
        return None
    name = os_traits.normalize_name('_'.join(words))
    return name if len(name) <= 255 else None
