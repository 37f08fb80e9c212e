# SPDX-License-Identifier: Apache-2.0
"""Huawei Ascend NPUs.

Sysfs alone finds the cards: one device for each PCI function, since a function goes to one
tenant, however many chips are behind it.  Where ``npu-smi`` answers, it adds which chips they
are.  Its table is asked for in each look; board, mapping and topology once, and again only for a
card that is new and for a question that failed.  A question that fails costs no other, and what
was known of the same card stays.

Source: hicann/driver, dcmi_common.h and devdrv_pci.h for the ids.
"""

from __future__ import annotations

import collections.abc
import copy
import dataclasses
import re
import time
import typing

from oslo_config import cfg

from cyborg_lite import driver
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs
from cyborg_lite.drivers.tools import npu_smi

Facts = dict[str, typing.Any]

#: Families by device id.  Cards that others sell under their name keep the device id.
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
#: The most that is asked of single cards: each costs a run of npu-smi.
NPUS = 64
#: The most chips whose error codes are asked for in one look.
ILL = 16
#: For how long one look begins new questions, in seconds: the others are for the next look.
PATIENCE = 8.0
#: The questions, as arguments of npu-smi.
Question = tuple[str, ...]
TABLE: Question = ('info',)
MAPPING: Question = ('info', '-m')
TOPOLOGY: Question = ('info', '-t', 'topo')
#: How an answer is known to be one, whatever the release: a text without it is rubbish.
SIGNS = {
    TABLE: re.compile(r'\|\s*Bus-Id\s*\|'),
    MAPPING: re.compile(r'^\s*NPU ID\b', re.MULTILINE),
    TOPOLOGY: re.compile(r'^\s*(NPU|Phy-ID)\d', re.MULTILINE),
}
BOARD_SIGN = re.compile(
    r'^\s*(NPU ID|Board ID|PCIe Bus Info|Health Status|Error Code)\s*:', re.MULTILINE
)
#: How npu-smi says that a card or a release has no such question: it is not worth asking again.
UNSUPPORTED = re.compile(r'(not |un)support', re.IGNORECASE)
#: The device node of a vNPU, and from which number on they are: 16 numbers for each physical id.
#: Source: Huawei, npu-smi set -t create-vnpu, vnpu_id.
VNPU = re.compile('vdavinci([0-9]{3,6})')
VNPUS, EACH = 100, 16
#: A serial number; NA, -, 0000 and the like stand for none.
SERIAL = re.compile(r'(?!(.)\1*$)(?!N/?A$)[\w./ -]{4,64}', re.ASCII)


def _about(what: str, number: int, chip: int | None = None) -> Question:
    """The question for a board or, with a chip, for that chip on it."""
    question = ('info', '-t', what, '-i', str(number))
    return question if chip is None else (*question, '-c', str(chip))


def _board_of(number: int, chip: int | None = None) -> Question:
    return _about('board', number, chip)


@dataclasses.dataclass
class Npu:
    """What is known of the card at one address."""

    ids: tuple[str, ...]
    #: which entry of sysfs it was: the kernel makes another one for a card that comes anew
    entry: tuple[int, ...]
    #: True until its board was asked for
    new: bool = True
    facts: Facts = dataclasses.field(default_factory=dict)
    #: by which it knows itself: the serial number of its board, and the id of its first die
    serial: str | None = None
    die: str | None = None
    #: its chip by the name that its board has for it
    named: str | None = None
    #: what the last look told of the health of its chips, and their error codes, by number
    said: dict[int | None, driver.Health] = dataclasses.field(default_factory=dict)
    errors: dict[int | None, str] = dataclasses.field(default_factory=dict)

    @property
    def number(self) -> int | None:
        """The number by which npu-smi knows the card."""
        return self.facts.get('npu_id')

    @property
    def chip(self) -> int:
        """The number of its first chip."""
        return min((chip.get('chip_id', 0) for chip in self.facts.get('chips', ())), default=0)

    @property
    def physical(self) -> set[int]:
        """The physical ids of its chips; the logical ones where npu-smi tells no physical ones."""
        chips = self.facts.get('chips', ())
        ids = [chip.get('phy_id', chip.get('logic_id')) for chip in chips]
        return {number for number in ids if number is not None}

    def place(self, number: int, name: str) -> None:
        """Note its number and chip; those of another card mean that it is another one."""
        known = self.facts.get('chip_name')
        if self.number != number or (name and known and name != known):
            self.facts, self.serial, self.die, self.named, self.new = {}, None, None, None, True
            known = None
        self.facts |= {'npu_id': number, 'chip_name': name or known or ''}
        self.facts.setdefault('chips', [])

    def hear(self, chip: int | None, health: driver.Health) -> None:
        """Note the health of a chip."""
        self.said[chip] = health
        if not health.reason:
            self.errors.pop(chip, None)

    def add(self, chip: Facts) -> None:
        """Note what is told of a chip; a value that is unknown now leaves the old one."""
        chips = self.facts['chips']
        known = next((c for c in chips if c.get('chip_id', 0) == chip.get('chip_id', 0)), None)
        if known is None:
            chips.append(dict(chip))
        else:
            known.update(chip)

    def identify(self, kind: str, value: str | None) -> None:
        """Note the serial number or the die; another one than before means another card."""
        known = getattr(self, kind)
        if self.new and known and value != known:
            self.facts = {key: self.facts[key] for key in ('npu_id', 'chip_name', 'chips')}
            self.named = None
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
        # The questions that need not be asked again, and those that failed last time.
        self._answered: set[Question] = set()
        self._failed: set[Question] = set()
        self._mapping: list[Facts] = []
        # Whether npu-smi is there, and did not print its table.
        self._broken = False

    def discover(self) -> list[driver.Device]:
        cards = self.cards()
        self._known = {card.bdf: self._remember(card) for card in cards}
        self._broken = False
        for npu in self._known.values():
            npu.said.clear()
        # What a guest has is not seen by npu-smi.
        ours = [card for card in cards if card.driver not in sysfs.PASSED_THROUGH]
        if ours:
            self._ask(ours)
        return [self.device(card) for card in cards]

    def _remember(self, card: sysfs.Function) -> Npu:
        """What is known of this very card; nothing of another one that was at its address."""
        status = card.path.lstat()
        entry: tuple[int, ...] = (status.st_ino, self.host.printed_at('npu-smi'))
        if self.host.recorded:
            # The file system may use a number again.
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
        # A copy: the next look may change what is known while this one is still reported.
        return copy.deepcopy(self._known[card.bdf].facts)

    def serial(self, card: sysfs.Function) -> str | None:
        npu = self._known[card.bdf]
        # One kind for each card: another kind of number would make it another card.
        return self._unique(npu, 'serial' if npu.serial else 'die')

    def health(self, card: sysfs.Function) -> driver.Health | None:
        """By npu-smi, which tells of each chip; what it told of before and not now is unknown."""
        npu = self._known[card.bdf]
        told = [*npu.said.values()]
        if len(told) < len(npu.facts.get('chips', ())) or (not told and self._is_silent(card)):
            told.append(driver.Health())
        return driver.worst(super().health(card), *told)

    def _is_silent(self, card: sysfs.Function) -> bool:
        """Whether npu-smi could tell of a card of which it has told nothing."""
        passed = card.driver in sysfs.PASSED_THROUGH
        answered = any(npu.said for npu in self._known.values())
        return bool(passed or answered or self._broken or self._known[card.bdf].facts)

    def unusable(self, card: sysfs.Function) -> str | None:
        """A card of which vNPUs exist can be neither mounted nor passed through as a whole."""
        nodes = self.host.tree.names(self.host.root / 'dev')
        numbers = sorted(int(match[1]) for node in nodes if (match := VNPU.fullmatch(node)))
        known = {bdf: npu.physical for bdf, npu in self._known.items()}
        everywhere = set().union(*known.values())
        for number in numbers:
            owner = (number - VNPUS) // EACH
            # Where it is not known whose it is, it may be of each card that has told no number.
            if owner in known[card.bdf] or owner not in everywhere and not known[card.bdf]:
                return f'it is split into vNPUs (/dev/vdavinci{number})'
        return super().unusable(card)

    def traits(self, card: sysfs.Function) -> collections.abc.Iterator[str | None]:
        """``CUSTOM_NPU_910B`` and, if known, ``CUSTOM_NPU_910B3``."""
        family = FAMILIES[card.ids[1]]
        yield driver.trait('NPU', family)
        if family == '910_93':
            # The name by which it is sold.
            yield driver.trait('NPU', '910C')
        if chip := self._chip(card):
            yield driver.trait('NPU', chip)

    def _chip(self, card: sysfs.Function) -> str | None:
        """The chip by its full name, if npu-smi tells one that is of the card's family.

        The id decides: the first 910 calls itself 910A or 910B, and is no 910B.
        """
        npu, family = self._known[card.bdf], FAMILIES[card.ids[1]]
        # After the name of a family that has letters itself, or of a late one, letters may follow.
        rest = r'\d' if family in ('310', '910') else r'[\dA-Z]'
        names = [npu.named or '', npu.facts.get('chip_name', '')]
        return next((n for n in names if re.fullmatch(rf'{family}{rest}[\w.-]{{0,15}}', n)), None)

    def _ask(self, cards: list[sysfs.Function]) -> None:
        """Learn what npu-smi tells of these cards."""
        begun = time.monotonic()
        text = self._npu_smi(TABLE)
        self._broken = text is None
        known = {card.bdf for card in cards if card.driver or self._known[card.bdf].facts}
        if text:
            for bdf in sorted(known - self._take_table(npu_smi.parse_info(text))):
                self.note(f'npu-smi info does not list {bdf}')
            self._ask_errors(begun)
        elif text == '' and any(npu.facts for npu in self._known.values()):
            self.note('npu-smi is not there any more')
        if text != '' or self.host.recorded:
            self._forget_answers()
            self._ask_once(begun)
        for npu in self._known.values():
            npu.new = False

    def _ask_errors(self, begun: float) -> None:
        """Learn the error codes of chips that are not well, as long as there is time."""
        ill = [(n, chip) for n in self._known.values() for chip, h in n.said.items() if h.reason]
        for npu, chip in ill[:ILL]:
            if time.monotonic() - begun > PATIENCE:
                break
            # A question that fails leaves the code of the look before.
            if (text := self._npu_smi(_about('health', npu.number or 0, chip))) is not None:
                npu.errors[chip] = next(iter(npu_smi.parse_errors(text)), '')
        for npu, chip in ill:
            if code := npu.errors.get(chip):
                reason = f'{npu.said[chip].reason}_{code}'
                npu.said[chip] = npu.said[chip]._replace(reason=reason)

    def _ask_once(self, begun: float) -> None:
        """Ask what has no answer yet, as long as there is time."""
        failed: set[Question] = set()
        # What failed last time comes last: it may take all the time there is.
        while questions := [q for q in self._questions() if q not in failed]:
            if time.monotonic() - begun > PATIENCE:
                self.note('npu-smi is slow: what is left is asked for in the next look')
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
        """What npu-smi answers: '' if it has no answer to give, None if it failed to give one."""
        sign = SIGNS.get(question, BOARD_SIGN)
        try:
            text = self.host.run('npu-smi', *question)
        except driver.ToolError as error:
            if UNSUPPORTED.search(str(error)):
                return ''
            self.note(str(error))
            return None
        if text is None or not sign.search(text) and UNSUPPORTED.search(text):
            return ''
        if not sign.search(text):
            self.note(f'npu-smi {" ".join(question)}: no answer to the question')
            return None
        return text

    def _take_table(self, chips: list[Facts]) -> set[str]:
        """Note what the table tells of our cards; returns the addresses of those it lists."""
        for chip in chips:
            if npu := self._known.get(chip['bus']):
                npu.place(chip['npu_id'], chip['chip_name'])
                npu.add(chip['chip'])
                npu.hear(chip['chip'].get('chip_id'), chip['health'])
        return {chip['bus'] for chip in chips}

    def _forget_answers(self) -> None:
        """Ask again what may be otherwise where cards are new."""
        new = [npu for npu in self._known.values() if npu.new]
        same = {npu.number for npu in self._known.values()} - {npu.number for npu in new}
        if new:
            self._answered = {q for q in self._answered if len(q) > 4 and int(q[4]) in same}

    def _questions(self) -> list[Question]:
        """What is still to be asked, as far as is known by now."""
        known = self._known.values()
        numbers = {npu.number for npu in known}
        if None in numbers:
            # The board of a number tells at which address it is.
            numbers |= {row['npu_id'] for row in self._mapping}
        boards = [_board_of(n) for n in sorted(n for n in numbers if n is not None)[:NPUS]]
        dies = sorted((npu.number or 0, npu.chip) for npu in known if self._needs_die(npu))
        questions = [MAPPING, *boards, *(_board_of(*die) for die in dies), TOPOLOGY]
        return [question for question in questions if question not in self._answered]

    def _needs_die(self, npu: Npu) -> bool:
        """Whether the chip alone can tell which card this is, or which chip it has.

        Each 910 has a ``VDie ID``: it counts where no serial number is known.  A 910_93 is called
        910 in the table; its chip has the full name as ``NPU Name``.
        """
        asked = npu.number is not None and _board_of(npu.number) in self._answered
        family = FAMILIES[npu.ids[1]]
        return asked and (family == '910_93' or npu.serial is None and family.startswith('910'))

    def _unique(self, npu: Npu, kind: str) -> str | None:
        """The serial number or die, unless others have the same: then it is none."""
        value: str | None = getattr(npu, kind)
        return value if [getattr(n, kind) for n in self._known.values()].count(value) == 1 else None

    def _at(self, number: int) -> list[Npu]:
        """The cards of one number: the two dies of a 910_93 are two functions."""
        return [npu for npu in self._known.values() if npu.number == number]

    def _take(self, question: Question, text: str) -> None:
        """Note what the answer tells; it may be empty."""
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
        """Note the links: by number, or by physical id where the rows are of single chips."""
        for (kind, number), peers in npu_smi.parse_topology(text).items():
            chips = [npu for npu in self._known.values() if number in npu.physical]
            for npu in self._at(number) if kind == 'NPU' else chips:
                npu.facts['hccs_peers'] = peers

    def _take_row(self, row: Facts) -> None:
        """Note what the mapping tells of a chip."""
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
        serial = _serial_in(board.get('Serial Number', ''))
        several = len(self._at(number)) > 1
        for npu in self._at(number):
            npu.named = _chip_in(npu, board) or npu.named
            npu.identify('serial', f'{serial}/{npu.chip}' if serial and several else serial)
            if re.fullmatch('0x[0-9a-fA-F]{1,8}', board.get('Board ID', '')):
                # It tells which vNPU templates the chip has; its name does not.
                npu.facts['board_id'] = board['Board ID'].lower()

    def _take_die(self, number: int, chip: int, board: dict[str, str]) -> None:
        for npu in self._at(number):
            if npu.chip == chip:
                npu.named = _chip_in(npu, board) or npu.named
                npu.identify('die', _serial_in('-'.join(board.get('VDie ID', '').split())))


def _serial_in(text: str) -> str | None:
    """The serial number that the text is, if it is one."""
    return text if SERIAL.fullmatch(text) else None


def _chip_in(npu: Npu, board: dict[str, str]) -> str | None:
    """The name of the chip by its board: ``910_9392`` of an A3, ``950PR`` of a 950.

    Source: npu-smi, ``info -t board``: Chip Name, and NPU Name.
    """
    chip, sub = (board.get(k, '').removeprefix('Ascend').strip() for k in ('Chip Name', 'NPU Name'))
    if FAMILIES[npu.ids[1]] == '910_93':
        return f'910_{sub}' if re.fullmatch('93[0-9A-Z]{2,6}', sub) else sub or None
    return chip or None
