# SPDX-License-Identifier: Apache-2.0
"""Drivers of other packages, for the entry points of these tests."""

import threading

from cyborg_lite import driver
from tests import support

#: Set to release hung drivers.
RELEASED = threading.Event()


class Good(driver.Driver):
    name = 'good'
    buses = ('3b',)

    def discover(self):
        return [support.card(bus) for bus in self.buses]


class Other(Good):
    name = 'other'
    buses = ('3b', '5e')


class Moody(Good):
    """Behaves as a test sets it."""

    name = 'moody'
    mood: Exception | None = None

    def discover(self):
        if self.mood:
            raise self.mood
        return super().discover()


class Counting(driver.Driver):
    """Counts the PCI functions."""

    name = 'counting'
    count = 0

    def discover(self):
        type(self).count = len(self.host.tree.functions())
        return []


class Noting(Good):
    """Finds its cards, but cannot read all facts."""

    name = 'noting'
    notes = ('the tool is slow', 'the tool is slow', 'no board id')
    all = True

    def discover(self):
        for text in self.notes:
            self.note(text, complete=self.all)
        return super().discover()


class Raising(driver.Driver):
    name = 'raising'

    def discover(self):
        raise OSError('no such card')


class Exiting(driver.Driver):
    name = 'exiting'

    def discover(self):
        raise SystemExit('out of here')


class Hanging(driver.Driver):
    name = 'hanging'

    def discover(self):
        RELEASED.wait()
        return [support.card('7a')]


class Rubbish(driver.Driver):
    name = 'rubbish'

    def discover(self):
        return [support.card('7a'), 'a card', support.card('7b', traits=['no trait'])]


class Stillborn(driver.Driver):
    name = 'stillborn'

    def __init__(self, host, conf):
        raise RuntimeError('no library')

    def discover(self):
        return []


class Abstract(driver.Driver):
    name = 'abstract'


class Upstream:
    """Has a discover(), but not the base class."""

    def discover(self):
        return []


def function():
    """Not a class."""
