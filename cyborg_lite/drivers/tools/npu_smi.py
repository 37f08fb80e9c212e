# SPDX-License-Identifier: Apache-2.0
"""Parse the output of npu-smi, which has no JSON.

Source: hicann/driver, npu_info_print.c for the tables, npu_common.c for the values of health.
"""

from __future__ import annotations

import collections
import collections.abc
import re
import typing

from cyborg_lite import driver
from cyborg_lite.driver import sysfs

Facts = dict[str, typing.Any]

#: The number pair of a usage: "30710/ 32768".
USAGE = re.compile(r'\d{1,9}\s*/\s*(\d{1,9})')
#: The health for each word of the column Health; UNKNOWN and other words have no meaning here.
HEALTH = {
    'ok': driver.Health('ok'),
    'warning': driver.Health('warning', 'ascend_warning'),
    'alarm': driver.Health('critical', 'ascend_alarm'),
    'critical': driver.Health('critical', 'ascend_critical'),
}
#: The headings of the column with the utilization, which is the first of its cell: that of all
#: engines, or of the AI Cores alone.
LOADS = ('NPU Util(%)', 'AICore(%)')
#: The versions above the table: that of npu-smi, and that of the driver.
RELEASE = re.compile(r'^\|\s*npu-smi\s+\S+\s+Version:\s*([\w.+-]{1,64})\s', re.MULTILINE | re.ASCII)
#: The answer of npu-smi if a card or a release does not support a query: it is not repeated.
UNSUPPORTED = re.compile(r'(not |un)support', re.IGNORECASE)
#: A serial number; NA, -, 0000 and the like stand for none.
SERIAL = re.compile(r'(?!(.)\1*$)(?!N/?A$)[\w./ -]{4,64}', re.ASCII)
#: An error code: hexadecimal, with or without 0x.
ERROR = re.compile('(?:0x)?([0-9a-f]{4,16})')


def parse_info(text: str) -> list[Facts]:
    """The chips in the table of ``npu-smi info``: bus, npu_id, chip_name, chip, health and
    utilization of each.

    The bus is None if it is NA: the chip is the processor of its board.

    Each chip has two rows.  Before the column of the bus address, the first row has the card's
    number and name.  The second row has what the second row of the heading names: chip and device
    (310, 310P), chip (910), chip and physical id (910_93), or nothing (950).
    """
    chips: list[Facts] = []
    places: list[tuple[str | None, int]]
    above: list[str] = []
    heading: list[str] = []
    loads: list[bool] = []
    bus_column = -1
    for line in text.splitlines():
        row = [cell.strip() for cell in line.split('|')[1:-1]]
        if 'Bus-Id' in row:
            bus_column = row.index('Bus-Id')
            heading = ' '.join(row[:bus_column]).split()
            loads = [cell.startswith(LOADS) for cell in row]
        places = [(bus, n) for n, cell in enumerate(row) if (bus := sysfs.normal(cell))]
        if len(row) > bus_column > 0 and row[bus_column] == 'NA':
            places.append((None, bus_column))
        if places:
            bus, column = places[0]
            number, *name = [*' '.join(above[:column]).split(), ''][:3]
            ids = _ids(zip(heading, ' '.join(row[:column]).split(), strict=False))
            if (npu_id := _number(number)) is not None:
                chip = ids | _memory(row[-1])
                chip_name = name[0].removeprefix('Ascend') if name else ''
                found: Facts = {'bus': bus, 'npu_id': npu_id, 'chip_name': chip_name, 'chip': chip}
                # The health of a chip is above its address.
                word = above[column] if column < len(above) else ''
                found['health'] = HEALTH.get(word.lower(), driver.Health())
                cells = (cell for cell, is_load in zip(row, loads, strict=False) if is_load)
                chips.append(found | {'utilization': _percent(next(cells, ''))})
        above = row
    return chips


#: A row of the table of processes: the number of the card, the pid, and at the end the memory.
PROCESS = re.compile(
    r'^\|\s*([0-9]{1,6})\s[^|\n]*\|\s*([0-9]{1,7})\s*\|.*\s([0-9]{1,8})\s*\|\s*$', re.MULTILINE
)


def parse_processes(text: str) -> dict[int, dict[int, int]]:
    """How much memory each process has, in MB, by the number of the card and its pid.

    One of several chips of a card is listed for each of them.
    """
    found: dict[int, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    _, _, table = text.partition('| Process id ')
    for row in PROCESS.findall(table):
        card, pid, size = map(int, row)
        if 0 < pid <= driver.contract.PID:
            found[card][pid] += size
    return {card: dict(sizes) for card, sizes in found.items()}


def parse_release(text: str) -> str | None:
    """The version of the driver, from the heading of ``npu-smi info``; None if it is unknown."""
    match = RELEASE.search(text)
    return match[1] if match else None


#: The name in the row of a board's controller.
CONTROLLER = 'Mcu'
#: Our name of each column with a number of a chip.
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


def _percent(cell: str) -> int | None:
    """The first number in the cell; None if it is no percentage, such as NA or -."""
    number = _number(next(iter(cell.split()), ''))
    return number if number is not None and number <= 100 else None


def _memory(cell: str) -> Facts:
    """The size of the last memory in the cell, in MB: HBM comes after the host's memory.

    Empty if it is unknown.
    """
    sizes = [int(size) for size in USAGE.findall(cell) if int(size)]
    return {'memory_mb': sizes[-1]} if sizes else {}


def parse_mapping(text: str) -> list[Facts]:
    """The chips in the table of ``npu-smi info -m``: npu_id, chip_id, chip_name and others.

    Two or more spaces separate its columns.  The board's controller has a row, but is not a chip.
    """
    rows: list[Facts] = []
    titles: list[str] = []
    for line in text.splitlines():
        cells = re.split(r'\s{2,}', line.strip())
        if cells[0] == 'NPU ID':
            titles = cells
        ids = _ids(zip(titles, cells, strict=False))
        if ids.keys() >= {'npu_id', 'chip_id'} and cells[-1] != CONTROLLER:
            rows.append(ids | {'chip_name': cells[-1].removeprefix('Ascend').strip()})
    return rows


#: The words for an unknown value, or one that the user may not read.
ABSENT = ('NA', 'N/A', '-')


def parse_board(text: str) -> dict[str, str]:
    """The lines ``key : value`` of ``npu-smi info -t board -i N``, without absent values."""
    lines = (line.partition(':') for line in text.splitlines())
    pairs = ((key.strip(), value.strip()) for key, colon, value in lines if colon)
    return {key: value for key, value in pairs if value not in ABSENT}


def chip_name(board: dict[str, str], family: str) -> str | None:
    """The name of a board's chip, as CANN has it: ``910_9392`` of an A3, ``950PR_9579``.

    Source: npu-smi, ``info -t board``: Chip Name, and NPU Name, which other families do not have.
    """
    chip, sub = (board.get(k, '').removeprefix('Ascend').strip() for k in ('Chip Name', 'NPU Name'))
    if family == '910_93':
        return f'910_{sub}' if re.fullmatch('93[0-9A-Z]{2,6}', sub) else sub or None
    if family == '950' and chip and re.fullmatch('95[0-9A-Z]{2,6}', sub):
        return f'{chip}_{sub}'
    return chip or None


def parse_health(text: str) -> driver.Health:
    """The health of the chip in ``npu-smi info -t health -i N -c C``."""
    return HEALTH.get(parse_board(text).get('Health Status', '').lower(), driver.Health())


def parse_errors(text: str) -> list[str]:
    """The error codes in ``npu-smi info -t health``, such as ``80e01801``, in their order."""
    codes = parse_board(text).get('Error Code', '').lower().replace(',', ' ').split()
    found = (ERROR.fullmatch(code) for code in codes)
    return [match[1] for match in found if match]


#: The words for a direct link; the two dies of a chip, SIO, are nearer than any others.  A build
#: may print XLink instead of HCCS. ``_SW`` follows where a switch is between them.
#: Source: hicann/driver, npu_info_print_ext.c and npu_info_print_ch.c, the legend of topo.
LINKS = {'HCCS': 1, 'XLink': 1, 'UB': 1, 'SIO': 2}


def parse_topology(text: str) -> dict[tuple[str, int], dict[int, str]]:
    """The links of each NPU or die, ``HCCS`` and so on by the number of the other, from the
    matrix of ``npu-smi info -t topo``.

    Rows and columns are of NPUs or, where an NPU has two dies, of dies by their physical ids:
    ``NPU3`` or ``Phy-ID3``.
    """
    peers: dict[tuple[str, int], dict[int, str]] = {}
    columns: list[tuple[str, int]] = []
    for line in text.splitlines():
        words = line.split()
        named = [_node(word) for word in words]
        nodes = [node for node in named if node]
        if len(nodes) > 1:
            columns = nodes
        elif nodes and named[0] and len(words) > len(columns):
            cells = zip(columns, (word.removesuffix('_SW') for word in words[1:]), strict=False)
            peers[named[0]] = {n: word for (_, n), word in cells if word in LINKS}
    return peers


def _node(word: str) -> tuple[str, int] | None:
    match = re.fullmatch('(NPU|Phy-ID)([0-9]{1,4})', word)
    return (match[1], int(match[2])) if match else None


def serial(text: str) -> str | None:
    """The text as a serial number; None if it is not one."""
    return text if SERIAL.fullmatch(text) else None
