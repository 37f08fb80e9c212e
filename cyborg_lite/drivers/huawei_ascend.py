# SPDX-License-Identifier: Apache-2.0
"""Huawei Ascend NPUs.

Sysfs alone finds the cards: one device for each PCI function, since a function goes to one
tenant, however many chips are behind it.  Where ``npu-smi`` answers, it adds which chips they
are; where it fails, the cards stay.

Source: hicann/driver, dcmi_common.h and devdrv_pci.h for the ids, npu_info_print.c for the
tables that npu-smi prints.  It has no JSON.
"""

from __future__ import annotations

import collections.abc
import re
import typing

from oslo_log import log

from cyborg_lite import driver
from cyborg_lite.driver import pci
from cyborg_lite.driver import sysfs

LOG = log.getLogger(__name__)

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
#: The number pair of a usage: "30710/ 32768".
USAGE = re.compile(r'\d{1,9}\s*/\s*(\d{1,9})')
#: The most that is asked of single cards: each costs a run of npu-smi.
NPUS = 64


class HuaweiAscend(pci.PciDriver):
    name, type, resource_class = 'huawei_ascend', 'AICHIP', 'CUSTOM_NPU'
    classes = ('1200',)
    models = {
        (vendor, device): f'Ascend {FAMILIES[device]}'
        for vendor, device in [('19e5', d) for d in FAMILIES] + RESOLD + [('ffff', 'd500')]
    }

    def discover(self) -> list[driver.Device]:
        cards = list(self.cards())
        self._known = self._ask() if cards else {}
        return [self.device(card) for card in cards]

    def model(self, card: sysfs.Function) -> str:
        return f'Ascend {self._chip(card) or FAMILIES[card.ids[1]]}'

    def vendor_board(self, card: sysfs.Function) -> Facts:
        return self._known.get(card.bdf, {})

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
        name = self.vendor_board(card).get('chip_name', '')
        family = FAMILIES[card.ids[1]]
        return name if re.fullmatch(rf'{family}\d[\w.-]{{0,15}}', name) else None

    def _ask(self) -> dict[str, Facts]:
        """What npu-smi knows of the cards, by PCI address; nothing where it is absent."""
        known: dict[str, Facts] = {}
        try:
            for chip in parse_info(self._npu_smi('info')):
                _add(known, **chip)
            mapping = parse_mapping(self._npu_smi('info', '-m'))
            numbers = {row['npu_id'] for row in mapping} | {k['npu_id'] for k in known.values()}
            for number in sorted(numbers)[:NPUS]:
                board = parse_board(self._npu_smi('info', '-t', 'board', '-i', str(number)))
                _describe(known, number, board, mapping)
            for number, peers in parse_topology(self._npu_smi('info', '-t', 'topo')).items():
                for facts in _of(known, number):
                    facts['hccs_peers'] = peers
        except driver.ToolError as error:
            LOG.warning('Of some facts of NPUs sysfs alone tells: %s', error)
        return known

    def _npu_smi(self, *args: str) -> str:
        return self.host.run('npu-smi', *args) or ''


def _of(known: dict[str, Facts], number: int) -> list[Facts]:
    return [facts for facts in known.values() if facts['npu_id'] == number]


def _add(known: dict[str, Facts], bus: str, npu_id: int, chip_name: str, chip: Facts) -> None:
    """Add a chip to the function that it is behind."""
    facts = known.setdefault(bus, {'npu_id': npu_id, 'chip_name': chip_name, 'chips': []})
    facts['chips'].append(chip)


def _describe(
    known: dict[str, Facts], number: int, board: dict[str, str], mapping: list[Facts]
) -> None:
    """Add what the board and the mapping tell of one NPU."""
    rows = [row for row in mapping if row['npu_id'] == number]
    bus = sysfs.normal(board.get('PCIe Bus Info', ''))
    if bus and not _of(known, number):
        name = rows[0]['chip_name'] if rows else ''
        for row in rows:
            _add(known, bus, number, name, {'chip_id': row['chip_id']})
    for facts in _of(known, number):
        if re.fullmatch('0x[0-9a-fA-F]{1,8}', board.get('Board ID', '')):
            # It tells which vNPU templates the chip has; its name does not.
            facts['board_id'] = board['Board ID'].lower()
        for chip in facts['chips']:
            for row in rows:
                if row['chip_id'] == chip.get('chip_id', 0):
                    chip.update((k, v) for k, v in row.items() if k in ('logic_id', 'phy_id'))


def parse_info(text: str) -> list[Facts]:
    """The chips in the table of ``npu-smi info``: bus, npu_id, chip_name and chip of each.

    Two rows tell of a chip.  What is before the column of the bus address is, in the first, the
    card's number and name and, in the second, what the second row of the heading says: chip and
    device (310, 310P), chip (910), chip and physical id (910_93), or nothing (950).
    """
    chips: list[Facts] = []
    above: list[str] = []
    heading: list[str] = []
    for line in text.splitlines():
        row = [cell.strip() for cell in line.split('|')[1:-1]]
        if 'Bus-Id' in row:
            heading = ' '.join(row[: row.index('Bus-Id')]).split()
        places = [(bus, n) for n, cell in enumerate(row) if (bus := sysfs.normal(cell))]
        if places:
            bus, column = places[0]
            number, *name = [*' '.join(above[:column]).split(), ''][:3]
            ids = _ids(zip(heading, ' '.join(row[:column]).split(), strict=False))
            if (npu_id := _number(number)) is not None:
                chip = ids | {'memory_mb': _memory(row[-1])}
                chip_name = name[0].removeprefix('Ascend') if name else ''
                chips.append({'bus': bus, 'npu_id': npu_id, 'chip_name': chip_name, 'chip': chip})
        above = row
    return chips


#: Our name of each column that numbers a chip.
COLUMNS = {
    'Chip': 'chip_id',
    'Chip ID': 'chip_id',
    'Device': 'logic_id',
    'Chip Logic ID': 'logic_id',
    'Phy-ID': 'phy_id',
    'Chip Phy-ID': 'phy_id',
    'NPU ID': 'npu_id',
}


def _ids(cells: collections.abc.Iterable[tuple[str, str]]) -> dict[str, int]:
    """The numbers in a row, by our name of their column."""
    numbers = {COLUMNS[title]: _number(cell) for title, cell in cells if title in COLUMNS}
    return {key: number for key, number in numbers.items() if number is not None}


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch('[0-9]{1,6}', text) else None


def _memory(cell: str) -> int:
    """The size of the last memory that is there, in MB: HBM comes after the host's; else 0."""
    return next((int(size) for size in reversed(USAGE.findall(cell)) if int(size)), 0)


def parse_mapping(text: str) -> list[Facts]:
    """The chips in the table of ``npu-smi info -m``: npu_id, chip_id, chip_name and others.

    Its columns stand two spaces or more apart.  A row of the board's controller has no numbers.
    """
    rows: list[Facts] = []
    titles: list[str] = []
    for line in text.splitlines():
        cells = re.split(r'\s{2,}', line.strip())
        if cells[0] == 'NPU ID':
            titles = cells
        ids = _ids(zip(titles, cells, strict=False))
        if ids.keys() >= {'npu_id', 'chip_id'}:
            rows.append(ids | {'chip_name': cells[-1].removeprefix('Ascend').strip()})
    return rows


def parse_board(text: str) -> dict[str, str]:
    """The lines ``key : value`` of ``npu-smi info -t board -i N``."""
    pairs = (line.partition(':') for line in text.splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def parse_topology(text: str) -> dict[int, list[int]]:
    """The NPUs to which each is linked by HCCS, from the matrix of ``npu-smi info -t topo``.

    Some builds print XLink for HCCS.
    """
    peers: dict[int, list[int]] = {}
    columns: list[int] = []
    for line in text.splitlines():
        words = line.split()
        numbers = [int(w[3:]) for w in words if re.fullmatch('NPU[0-9]{1,4}', w)]
        if len(numbers) > 1:
            columns = numbers
        elif numbers and len(words) > len(columns):
            links = zip(columns, words[1:], strict=False)
            peers[numbers[0]] = [n for n, link in links if link.startswith(('HCCS', 'XLink'))]
    return peers
