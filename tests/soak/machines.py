# SPDX-License-Identifier: Apache-2.0
"""Machines as directories, with changes: cards are removed, moved, replaced and split, and
machines are renamed.

The processes of the agents read them; the test knows the true content of each.
"""

from __future__ import annotations

import collections.abc
import contextlib
import fcntl
import json
import os
import pathlib
import re
import time
import typing
import uuid

import yaml

from cyborg_lite import driver
from cyborg_lite.driver import description
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import sysfs

#: The PCI classes of cards in the shipped hosts.
CARDS = ('1200', '0302', '0b40')
#: The query of npu-smi for a board, and the part of its answer that moves with the card.
BOARD = 'info -t board -i'
SERIAL = re.compile(r'(?m)^(\s*Serial Number\s*: )(.*)$')
ADDRESS = re.compile(r'(?m)^\s*PCIe Bus Info\s*: (.*)$')
#: A GPU's UUID in the answer of NVML. It is the serial number of its card.
GPU = re.compile(r'GPU-[0-9a-f-]{36}')


@contextlib.contextmanager
def still(root: pathlib.Path, how: int = fcntl.LOCK_SH) -> collections.abc.Iterator[None]:
    """Lock a machine: no card changes its slot during a scan, as real cards need a power-off."""
    with (root / 'lock').open('a') as lock:
        fcntl.flock(lock, how)
        yield


class Card(typing.NamedTuple):
    """A card in a machine."""

    #: None if it is not readable
    serial: str | None
    #: the addresses of its accelerators; empty if they are not checked
    functions: frozenset[str]


class Machine:
    """A machine in a directory. Its identity does not depend on its name."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        self.id = root.name
        self._listed = root / sysfs.DEVICES
        self._pulled, self._hidden = root / 'pulled', root / 'hidden'
        self._spare: list[str] = []
        self.cards = [
            function.bdf
            for function in sysfs.Tree(root).functions()
            if function.pci_class.startswith(CARDS)
            and function.bdf.endswith('.0')
            and not function.is_virtual
        ]

    # Its name

    @property
    def name(self) -> str:
        """The name under which its agent reports; empty while no agent runs."""
        return (self.root / 'name').read_text()

    def rename(self, name: str) -> None:
        self._write(self.root / 'name', name)

    @property
    def host(self) -> driver.Host:
        return driver.Host(self.name, self.root)

    # Its cards

    def pull(self, address: str) -> None:
        # It is removed already.
        with contextlib.suppress(FileNotFoundError):
            (self._listed / address).rename(self._pulled / address)

    def put_back(self) -> None:
        for card in list(self._pulled.iterdir()):
            card.rename(self._listed / card.name)

    @property
    def pulled(self) -> list[str]:
        return sorted(os.listdir(self._pulled))

    @property
    def boards(self) -> dict[str, pathlib.Path]:
        """The file with the serial number of each card, by address."""
        files = (self.root / description.output('npu-smi', ())).parent.glob('info_-t_board_-i_*')
        texts = {file: file.read_text() for file in files}
        return {
            sysfs.normal(match[1]) or '': file
            for file, text in sorted(texts.items())
            if (match := ADDRESS.search(text))
        }

    @property
    def serials(self) -> dict[str, str]:
        """The serial number of each card that has one, by address."""
        told = self.root / description.output('nvml', ['gpus'])
        gpus = json.loads(told.read_text()) if told.exists() else {}
        return {
            **{address: gpu['uuid'] for address, gpu in gpus.items()},
            **{address: _serial(file) for address, file in self.boards.items()},
        }

    def swap(self, one: str, other: str) -> None:
        """Swap the slots of two cards."""
        files = self.boards[one], self.boards[other]
        serials = [_serial(file) for file in files]
        with still(self.root, fcntl.LOCK_EX):
            for file, serial in zip(files, reversed(serials), strict=True):
                self._set_serial(file, serial)

    def replace(self, address: str, again: bool) -> None:
        """Put another card into a slot: a new one, or one that was removed before."""
        file = self.boards[address]
        self._spare.append(_serial(file))
        new = f'S{uuid.uuid4().hex[:16]}'
        with still(self.root, fcntl.LOCK_EX):
            self._set_serial(file, self._spare.pop(0) if again else new)

    def _set_serial(self, file: pathlib.Path, serial: str) -> None:
        self._write(file, SERIAL.sub(rf'\g<1>{serial}', file.read_text()))

    @property
    def split_cards(self) -> dict[str, int]:
        """The cards that can be split, by address, with the numbers of parts."""
        totals = {bdf: self._home(bdf) / 'sriov_totalvfs' for bdf in self.cards}
        return {bdf: int(file.read_text()) for bdf, file in totals.items() if file.exists()}

    def split(self, address: str, parts: int) -> None:
        """Create so many virtual functions of a card, in the order of the kernel."""
        card = self._home(address)
        self._write(card / 'sriov_numvfs', '0')
        for link in sorted(card.glob('virtfn*')):
            function = os.path.basename(os.readlink(link))
            link.rename(self._hidden / link.name)
            (self._listed / function).rename(self._hidden / function)
        for number in range(parts):
            link = self._hidden / f'virtfn{number}'
            function = os.path.basename(os.readlink(link))
            (self._hidden / function).rename(self._listed / function)
            link.rename(card / link.name)
        self._write(card / 'sriov_numvfs', str(parts))

    def _home(self, address: str) -> pathlib.Path:
        return self.root / 'sys' / f'devices/pci{address[:-5]}' / address

    def there(self) -> dict[str, Card]:
        """The cards in the machine, by address."""
        serials = self.serials
        made = {}
        for bdf in self.cards:
            if os.path.lexists(self._listed / bdf):
                parts = (os.readlink(link) for link in self._home(bdf).glob('virtfn*'))
                functions = frozenset(map(os.path.basename, parts))
                # Only the user function of an Alveo is allocated.
                known = bdf in serials or bdf in self.split_cards
                functions = functions or frozenset([bdf] if known else [])
                made[bdf] = Card(serials.get(bdf), functions)
        return made

    def _write(self, file: pathlib.Path, text: str) -> None:
        """Write atomically, with a later mtime than before: the file system's clock is coarse."""
        new = self.root / 'new'
        new.write_text(text)
        now = time.time_ns()
        os.utime(new, ns=(now, now))
        new.replace(file)


def _serial(file: pathlib.Path) -> str:
    match = SERIAL.search(file.read_text())
    assert match, file
    return match[2]


def lay_out(
    place: pathlib.Path, number: int, kinds: collections.abc.Collection[str] = ()
) -> list[Machine]:
    """Copies of the shipped hosts, in turn.

    :param kinds: the names of the hosts; all by default.
    """
    texts = sorted((n, text) for n, text in hosts.shipped().items() if not kinds or n in kinds)
    made = []
    for count in range(number):
        name, text = texts[count % len(texts)]
        # Every scalar is text.
        described = yaml.load(text, yaml.BaseLoader)
        described['name'] = f'{name}-{place.name}-{count}'
        # No two cards of a cloud have one serial number.
        for tool, answers in described.get('tools', {}).items():
            for command, printed in answers.items():
                if tool == 'npu-smi' and command.startswith(BOARD):
                    serial = f'S{uuid.uuid4().hex[:16]}'
                    answers[command] = f'{printed}Serial Number : {serial}\n'
                elif tool == 'nvml':
                    answers[command] = GPU.sub(lambda _: f'GPU-{uuid.uuid4()}', printed)
        file = place / f'{described["name"]}.yaml'
        file.write_text(yaml.safe_dump(described))
        root = hosts.find(str(file), place / 'hosts').root
        file.unlink()
        for directory in ('pulled', 'hidden', 'etc'):
            (root / directory).mkdir()
        (root / 'etc' / 'machine-id').write_text(uuid.uuid4().hex)
        machine = Machine(root)
        machine.rename(root.name)
        made.append(machine)
    return made
