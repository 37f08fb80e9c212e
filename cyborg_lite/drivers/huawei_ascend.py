# SPDX-License-Identifier: Apache-2.0
"""Huawei Ascend NPUs.

Sysfs alone finds the cards: one device for each PCI function, since a function goes to one tenant,
however many chips are behind it.  ``npu-smi``, if it answers, adds the names of the chips. Its
table is read in each scan; board, mapping and topology are read once, and again only for a new
card or after a failure.  A failed query does not affect others, and the known values of the same
card stay.  A host without such functions may have NPUs, too: see tools/ascend_nodes.py.

Source: hicann/driver, dcmi_common.h and devdrv_pci.h for the ids.
"""

from __future__ import annotations

import collections
import collections.abc
import copy
import dataclasses
import re
import time
import typing

from oslo_config import cfg

from cyborg_lite import driver
from cyborg_lite.driver import pci
from cyborg_lite.driver import pids
from cyborg_lite.driver import sysfs
from cyborg_lite.drivers.tools import ascend_nodes
from cyborg_lite.drivers.tools import ascend_trial
from cyborg_lite.drivers.tools import cann
from cyborg_lite.drivers.tools import npu_smi

Facts = dict[str, typing.Any]

#: Families by device id.  Cards of other vendors with these chips keep the device id.
FAMILIES = {
    'd100': '310',
    'd105': '310B',
    'd107': '310',
    'd500': '310P',
    'd501': '310P',
    'd801': '910',
    'd802': '910B',
    'd803': '910_93',
    'd804': '910B',
    'd806': '950',
    'd807': 'Cloud v5',
    'd808': 'Mini v4',
}
RESOLD = [(vendor, device) for vendor in ('20c6', '203f', '20e9') for device in ('d500', 'd802')]
#: The maximum number of queries for single cards: each is a run of npu-smi.
NPUS = 64
#: The maximum number of chips whose error codes are read in one scan.
ILL = 16
#: How long one scan starts new queries, in seconds: the others are left for the next scan.
PATIENCE = 8.0
#: A query, as arguments of npu-smi.
Question = tuple[str, ...]
TABLE: Question = ('info',)
MAPPING: Question = ('info', '-m')
TOPOLOGY: Question = ('info', '-t', 'topo')
#: The links between cards, as opposed to those between the dies of one.
HCCS = ('HCCS', 'XLink')
#: Patterns of valid answers in all releases: a text without a match is invalid.
SIGNS = {
    TABLE: re.compile(r'\|\s*Bus-Id\s*\|'),
    MAPPING: re.compile(r'^\s*NPU ID\b', re.MULTILINE),
    TOPOLOGY: re.compile(r'^\s*(NPU|Phy-ID)\d', re.MULTILINE),
}
BOARD_SIGN = re.compile(
    r'^\s*(NPU ID|Board ID|PCIe Bus Info|Health Status|Error Code)\s*:', re.MULTILINE
)
#: The device node of a vNPU, and the first of their numbers: 16 numbers for each physical id.
#: Source: Huawei, npu-smi set -t create-vnpu, vnpu_id.
VNPU = re.compile('vdavinci([0-9]{3,6})')
VNPUS, EACH = 100, 16


def _about(what: str, number: int, chip: int | None = None) -> Question:
    """The query for a board or, with a chip, for that chip on it."""
    question = ('info', '-t', what, '-i', str(number))
    return question if chip is None else (*question, '-c', str(chip))


def _board_of(number: int, chip: int | None = None) -> Question:
    return _about('board', number, chip)


@dataclasses.dataclass(eq=False)
class Npu:
    """The known facts of the card at one address."""

    ids: tuple[str, ...]
    #: the entry of sysfs: the kernel makes a new one for a card that is added again
    entry: tuple[int, ...]
    #: True until its board was read
    new: bool = True
    facts: Facts = dataclasses.field(default_factory=dict)
    #: its unique ids: the serial number of its board, and the id of its first die
    serial: str | None = None
    die: str | None = None
    #: the name of its chip, and the version of its firmware, from its board
    named: str | None = None
    firmware: str | None = None
    #: the number of its links to each card or die, by kind and number as the topology names it
    links: dict[tuple[str, int], int] = dataclasses.field(default_factory=dict)
    #: the health of its chips in the last scan, with their error codes, by number
    said: dict[int | None, driver.Health] = dataclasses.field(default_factory=dict)
    errors: dict[int | None, str] = dataclasses.field(default_factory=dict)
    #: the utilization of its chips in the last scan, in percent; None of a chip that tells none
    loads: dict[int | None, int | None] = dataclasses.field(default_factory=dict)
    #: how much memory each process had in the last scan, in MB, by its pid
    memory: dict[int, int] = dataclasses.field(default_factory=dict)

    @property
    def number(self) -> int | None:
        """The number of the card in npu-smi."""
        return self.facts.get('npu_id')

    @property
    def chip(self) -> int:
        """The number of its first chip."""
        return min((chip.get('chip_id', 0) for chip in self.facts.get('chips', ())), default=0)

    @property
    def physical(self) -> set[int]:
        """The physical ids of its chips; the logical ones if npu-smi prints no physical ones."""
        chips = self.facts.get('chips', ())
        ids = [chip.get('phy_id', chip.get('logic_id')) for chip in chips]
        return {number for number in ids if number is not None}

    def place(self, number: int, name: str) -> None:
        """Store its number and chip; other values mean that it is another card."""
        known = self.facts.get('chip_name')
        if self.number != number or (name and known and name != known):
            self.facts, self.serial, self.die, self.named, self.new = {}, None, None, None, True
            self.firmware, self.links = None, {}
            known = None
        self.facts |= {'npu_id': number, 'chip_name': name or known or ''}
        self.facts.setdefault('chips', [])

    def hear(self, chip: int | None, health: driver.Health) -> None:
        """Store the health of a chip."""
        self.said[chip] = health
        if not health.reason:
            self.errors.pop(chip, None)

    def add(self, chip: Facts) -> None:
        """Store the facts of a chip; an unknown value does not replace the old one."""
        chips = self.facts['chips']
        known = next((c for c in chips if c.get('chip_id', 0) == chip.get('chip_id', 0)), None)
        if known is None:
            chips.append(dict(chip))
        else:
            known.update(chip)

    def identify(self, kind: str, value: str | None) -> None:
        """Store the serial number or the die; another value than before means another card."""
        known = getattr(self, kind)
        if self.new and known and value != known:
            self.facts = {key: self.facts[key] for key in ('npu_id', 'chip_name', 'chips')}
            self.named, self.firmware, self.links = None, None, {}
        if value or self.new:
            setattr(self, kind, value)


class HuaweiAscend(pci.PciDriver):
    name, type, resource_class = 'huawei_ascend', 'AICHIP', 'CUSTOM_NPU'
    classes = ('1200',)
    models = {
        (vendor, device): f'Ascend {FAMILIES[device]}'
        for vendor, device in [('19e5', d) for d in FAMILIES] + RESOLD + [('ffff', 'd500')]
    }

    def __init__(self, host: driver.Host, conf: cfg.ConfigOpts) -> None:
        super().__init__(host, conf)
        self._known: dict[str, Npu] = {}
        # The queries that need no repetition, and those that failed last time.
        self._answered: set[Question] = set()
        self._failed: set[Question] = set()
        self._mapping: list[Facts] = []
        # Whether npu-smi exists but did not print its table.
        self._broken = False
        # The version of the driver, from the heading of the table.
        self._release: str | None = None
        # The version of CANN, which all cards of the host have in common.
        self._runtime: str | None = None

    def discover(self) -> list[driver.Device]:
        cards = self.cards()
        if not cards and (numbers := ascend_nodes.numbers(self.host)):
            runtime = cann.version(self.host.tree)
            table = self._npu_smi(TABLE) or ''
            return [*ascend_nodes.devices(self.name, numbers, table, runtime)]
        self._known = {card.bdf: self._remember(card) for card in cards}
        self._runtime = cann.version(self.host.tree) if cards else None
        self._broken = False
        for npu in self._known.values():
            npu.said.clear()
            npu.loads.clear()
            npu.memory = {}
        # npu-smi does not see cards of guests.
        ours = [card for card in cards if not card.passed_through]
        if ours:
            self._ask(ours)
        return [self.device(card) for card in cards]

    def _remember(self, card: sysfs.Function) -> Npu:
        """The known facts of this card; those of an earlier card at its address are dropped."""
        status = card.path.lstat()
        entry: tuple[int, ...] = (status.st_ino, self.host.printed_at('npu-smi'))
        if self.host.recorded:
            # The file system may reuse an inode number.
            entry += (status.st_ctime_ns,)
        known = self._known.get(card.bdf)
        if known is None or known.ids != card.identity:
            return Npu(card.identity, entry)
        if known.entry != entry:
            known.entry, known.new = entry, True
        return known

    def model(self, card: sysfs.Function) -> str:
        return f'Ascend {self._chip(card) or FAMILIES[card.ids[1]]}'

    def vendor_board(self, card: sysfs.Function) -> Facts:
        # A copy: the next scan may change the facts while this one is still reported.
        return copy.deepcopy(self._known[card.bdf].facts)

    def versions(self, card: sysfs.Function) -> Facts:
        """The driver has no version in sysfs: npu-smi prints it.  The runtime is CANN."""
        npu = self._known[card.bdf]
        return {
            'driver': self._release if npu.facts else None,
            'firmware': npu.firmware,
            'runtime': self._runtime,
        }

    def links(self, card: sysfs.Function) -> dict[str, int]:
        """The links that the topology tells; without it those of the two dies of a 910_93."""
        npu, found = self._known[card.bdf], collections.Counter[str]()
        for (kind, number), count in npu.links.items():
            peers = self._named(kind, number)
            found.update({b: count for b, n in self._known.items() if n in peers and n is not npu})
        dies = self._at(npu.number) if FAMILIES[npu.ids[1]] == '910_93' else []
        near = {
            b: npu_smi.LINKS['SIO'] for b, n in self._known.items() if n in dies and n is not npu
        }
        return dict(found | collections.Counter(near))

    def serial(self, card: sysfs.Function) -> str | None:
        npu = self._known[card.bdf]
        # One kind of id for each card: an id of another kind would make it another card.
        return self._unique(npu, 'serial' if npu.serial else 'die')

    def health(self, card: sysfs.Function) -> driver.Health | None:
        """The health from npu-smi; a chip that it does not report any more has unknown health."""
        npu = self._known[card.bdf]
        told = [*npu.said.values()]
        if len(told) < len(npu.facts.get('chips', ())) or (not told and self._is_silent(card)):
            told.append(driver.Health())
        return driver.worst(super().health(card), *told)

    def trial(self, card: sysfs.Function) -> str | None:
        """It answers on its bus, its chips have their nodes, and npu-smi says OK of each chip."""
        npu = self._known[card.bdf]
        chips = npu.facts.get('chips', ())
        asked = [_about('health', npu.number or 0, chip.get('chip_id')) for chip in chips]
        return super().trial(card) or ascend_trial.outcome(self.host, chips, asked)

    def utilization(self, card: sysfs.Function) -> int | None:
        """That of its busiest chip; None unless npu-smi tells it of all of them."""
        npu = self._known[card.bdf]
        told = [load for load in npu.loads.values() if load is not None]
        return max(told) if told and len(told) >= len(npu.facts.get('chips', ())) else None

    def memory(self, card: sysfs.Function) -> dict[int, int] | None:
        """Also of the other function of a card with two dies, which has the same number."""
        return self._known[card.bdf].memory or None

    def _is_silent(self, card: sysfs.Function) -> bool:
        """Whether npu-smi should know a card but did not report it."""
        passed = card.passed_through
        answered = any(npu.said for npu in self._known.values())
        return bool(passed or answered or self._broken or self._known[card.bdf].facts)

    def unusable(self, card: sysfs.Function) -> str | None:
        """Refuse a card with vNPUs: it can be neither mounted nor passed through as a whole."""
        nodes = self.host.tree.names(self.host.root / 'dev')
        numbers = sorted(int(match[1]) for node in nodes if (match := VNPU.fullmatch(node)))
        known = {bdf: npu.physical for bdf, npu in self._known.items()}
        everywhere = set().union(*known.values())
        for number in numbers:
            owner = (number - VNPUS) // EACH
            # A vNPU of an unknown owner may be of any card without a known number.
            if owner in known[card.bdf] or owner not in everywhere and not known[card.bdf]:
                return f'it is split into vNPUs (/dev/vdavinci{number})'
        return super().unusable(card)

    def traits(self, card: sysfs.Function) -> collections.abc.Iterator[str | None]:
        """``CUSTOM_NPU_910B`` and, if known, ``CUSTOM_NPU_910B3``; of a 950 also that of the chip
        without its variant.
        """
        family = FAMILIES[card.ids[1]]
        yield driver.trait('NPU', family)
        if family == '910_93':
            # The name of the product.
            yield driver.trait('NPU', '910C')
        if chip := self._chip(card):
            yield driver.trait('NPU', chip)
            if family == '950' and '_' in chip:
                yield driver.trait('NPU', chip.partition('_')[0])

    def _chip(self, card: sysfs.Function) -> str | None:
        """The full name of the chip, if npu-smi prints one of the card's family.

        The device id decides: npu-smi names the first 910 either 910A or 910B, but it is not a
        910B.
        """
        npu, family = self._known[card.bdf], FAMILIES[card.ids[1]]
        # Letters may follow the name of a family that has letters itself, or of a recent family.
        rest = r'\d' if family in ('310', '910') else r'[\dA-Z]'
        names = [npu.named or '', npu.facts.get('chip_name', '')]
        return next((n for n in names if re.fullmatch(rf'{family}{rest}[\w.-]{{0,15}}', n)), None)

    def _ask(self, cards: list[sysfs.Function]) -> None:
        """Read the data of these cards from npu-smi."""
        begun = time.monotonic()
        text = self._npu_smi(TABLE)
        self._broken = text is None
        known = {card.bdf for card in cards if card.driver or self._known[card.bdf].facts}
        if text:
            self._release = npu_smi.parse_release(text)
            # Another pid namespace has other pids.
            ours = self.host.recorded or pids.are_global()
            told = npu_smi.parse_processes(text) if ours else {}
            for bdf in sorted(known - self._take_table(npu_smi.parse_info(text))):
                self.note(f'npu-smi info does not list {bdf}')
            for npu in self._known.values():
                npu.memory = told.get(npu.number, {}) if npu.number is not None else {}
            self._ask_errors(begun)
        elif text == '' and any(npu.facts for npu in self._known.values()):
            self.note('npu-smi is not there any more')
        if text != '' or self.host.recorded:
            self._forget_answers()
            self._ask_once(begun)
        for npu in self._known.values():
            npu.new = False

    def _ask_errors(self, begun: float) -> None:
        """Read the error codes of unhealthy chips, within the time limit."""
        ill = [(n, chip) for n in self._known.values() for chip, h in n.said.items() if h.reason]
        for npu, chip in ill[:ILL]:
            if time.monotonic() - begun > PATIENCE:
                break
            # After a failed query the code of the last scan stays.
            if (text := self._npu_smi(_about('health', npu.number or 0, chip))) is not None:
                npu.errors[chip] = next(iter(npu_smi.parse_errors(text)), '')
        for npu, chip in ill:
            if code := npu.errors.get(chip):
                reason = f'{npu.said[chip].reason}_{code}'
                npu.said[chip] = npu.said[chip]._replace(reason=reason)

    def _ask_once(self, begun: float) -> None:
        """Run the queries without an answer, within the time limit."""
        failed: set[Question] = set()
        # Queries that failed last time come last: they may use up the time.
        while questions := [q for q in self._questions() if q not in failed]:
            if time.monotonic() - begun > PATIENCE:
                self.note('npu-smi is slow: the next scan reads the rest')
                break
            question = min(questions, key=self._failed.__contains__)
            text = self._npu_smi(question)
            if text is None:
                failed.add(question)
            else:
                self._answered.add(question)
                self._take(question, text)
        self._failed = failed

    def _npu_smi(self, question: Question) -> str | None:
        """The answer of npu-smi: '' if it supports no answer, None if it failed."""
        sign = SIGNS.get(question, BOARD_SIGN)
        try:
            text = self.host.run('npu-smi', *question)
        except driver.ToolError as error:
            if npu_smi.UNSUPPORTED.search(str(error)):
                return ''
            self.note(error)
            return None
        if text is None or not sign.search(text) and npu_smi.UNSUPPORTED.search(text):
            return ''
        if not sign.search(text):
            self.note(f'npu-smi {" ".join(question)}: no answer to the question')
            return None
        return text

    def _take_table(self, chips: list[Facts]) -> set[str]:
        """Store the table's facts of our cards; returns the addresses that it lists."""
        for chip in chips:
            if npu := self._known.get(chip['bus']):
                npu.place(chip['npu_id'], chip['chip_name'])
                npu.add(chip['chip'])
                npu.hear(chip['chip'].get('chip_id'), chip['health'])
                npu.loads[chip['chip'].get('chip_id')] = chip['utilization']
        return {chip['bus'] for chip in chips}

    def _forget_answers(self) -> None:
        """Repeat the queries whose answers may differ with a new card."""
        new = [npu for npu in self._known.values() if npu.new]
        same = {npu.number for npu in self._known.values()} - {npu.number for npu in new}
        if new:
            self._answered = {q for q in self._answered if len(q) > 4 and int(q[4]) in same}

    def _questions(self) -> list[Question]:
        """The queries that are still open, by the present knowledge."""
        known = self._known.values()
        numbers = {npu.number for npu in known}
        if None in numbers:
            # The board of a number has its address.
            numbers |= {row['npu_id'] for row in self._mapping}
        boards = [_board_of(n) for n in sorted(n for n in numbers if n is not None)[:NPUS]]
        dies = sorted((npu.number or 0, npu.chip) for npu in known if self._needs_die(npu))
        questions = [MAPPING, *boards, *(_board_of(*die) for die in dies), TOPOLOGY]
        return [question for question in questions if question not in self._answered]

    def _needs_die(self, npu: Npu) -> bool:
        """Whether only the query of the chip identifies the card, or the kind of its chip.

        Each 910 has a ``VDie ID``: it is used if no serial number is known.  The table names a
        910_93 only 910; its chip has the full name as ``NPU Name``.
        """
        asked = npu.number is not None and _board_of(npu.number) in self._answered
        family = FAMILIES[npu.ids[1]]
        return asked and (family == '910_93' or npu.serial is None and family.startswith('910'))

    def _unique(self, npu: Npu, kind: str) -> str | None:
        """The serial number or die; None if other cards have the same."""
        value: str | None = getattr(npu, kind)
        return value if [getattr(n, kind) for n in self._known.values()].count(value) == 1 else None

    def _at(self, number: int | None) -> list[Npu]:
        """The cards of a known number: the two dies of a 910_93 are two functions."""
        return [n for n in self._known.values() if n.number == number is not None]

    def _take(self, question: Question, text: str) -> None:
        """Store the facts of an answer; it may be empty."""
        if question == MAPPING:
            self._mapping = npu_smi.parse_mapping(text)
            for row in self._mapping:
                self._take_row(row)
        elif question == TOPOLOGY:
            self._take_topology(text)
        elif len(question) == len(_board_of(0)):
            self._take_board(int(question[4]), npu_smi.parse_board(text))
        else:
            self._take_die(int(question[4]), int(question[6]), npu_smi.parse_board(text))

    def _take_topology(self, text: str) -> None:
        """Store the links: by number, or by physical id if the rows are of single chips."""
        for (kind, number), peers in npu_smi.parse_topology(text).items():
            for npu in self._named(kind, number):
                npu.facts['hccs_peers'] = [n for n, word in peers.items() if word in HCCS]
                npu.links = {(kind, n): npu_smi.LINKS[word] for n, word in peers.items()}

    def _named(self, kind: str, number: int) -> list[Npu]:
        """The cards that the topology names so."""
        if kind == 'NPU':
            return self._at(number)
        return [npu for npu in self._known.values() if number in npu.physical]

    def _take_row(self, row: Facts) -> None:
        """Store the facts of a chip from the mapping."""
        for npu in self._at(row['npu_id']):
            for chip in npu.facts['chips']:
                if row['chip_id'] == chip.get('chip_id', 0):
                    chip.update((k, v) for k, v in row.items() if k in ('logic_id', 'phy_id'))

    def _take_board(self, number: int, board: dict[str, str]) -> None:
        npu = self._known.get(sysfs.normal(board.get('PCIe Bus Info', '')) or '')
        if npu and not self._at(number):
            for row in [row for row in self._mapping if row['npu_id'] == number]:
                npu.place(number, row['chip_name'])
                npu.add({'chip_id': row['chip_id']})
                self._take_row(row)
        serial = npu_smi.serial(board.get('Serial Number', ''))
        several = len(self._at(number)) > 1
        for npu in self._at(number):
            npu.named = npu_smi.chip_name(board, FAMILIES[npu.ids[1]]) or npu.named
            npu.firmware = board.get('Firmware Version') or npu.firmware
            npu.identify('serial', f'{serial}/{npu.chip}' if serial and several else serial)
            if re.fullmatch('0x[0-9a-fA-F]{1,8}', board.get('Board ID', '')):
                # The vNPU templates of a chip follow from this id, not from its name.
                npu.facts['board_id'] = board['Board ID'].lower()

    def _take_die(self, number: int, chip: int, board: dict[str, str]) -> None:
        for npu in self._at(number):
            if npu.chip == chip:
                npu.named = npu_smi.chip_name(board, FAMILIES[npu.ids[1]]) or npu.named
                npu.identify('die', npu_smi.serial('-'.join(board.get('VDie ID', '').split())))
