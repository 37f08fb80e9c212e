# SPDX-License-Identifier: Apache-2.0
"""The contract suite fails for each kind of faulty driver, also in other packages.

Each test runs pytest in this process, on a folder like a vendor's package.
"""

from __future__ import annotations

import pathlib
import textwrap

import pytest

from cyborg_lite import driver
from cyborg_lite.driver import testing
from cyborg_lite.driver import watching
from tests import inner

HOST = """\
name: acme
functions:
- id: abcd:0001
  class: 120000
  at: {0: [0000:3b:00.0, 0000:3c:00.0], 1: [0000:86:00.0]}
  files: {acme_serial: A1B2C3}
- id: 8086:1234
  class: 060400
  at: {0: [0000:00:01.0]}
tools: {acme-smi: {list: '0000:3b:00.0 A1B2C3'}}
files: {sys/class/acme/acme0/slot: '0000:3b:00.0'}
"""
DRIVER = '''
import os, random
from cyborg_lite import driver
from cyborg_lite.driver import pci

class AcmeNpu(pci.PciDriver):
    """Acme cards."""

    name, type, resource_class = 'acme_npu', 'AICHIP', 'CUSTOM_NPU'
    models = {('abcd', '0001'): 'Acme One'}

    def discover(self):
        try:
            self.host.run('acme-smi', 'list')
        except driver.ToolError as error:
            self.note(str(error))
        return super().discover()
'''
TEST = """\
from cyborg_lite.driver import testing
class TestContract(testing.Contract):
    drivers, hosts = ['acme_npu'], ['*.yaml']
"""
SOUND = 'devices_are_sound'
DAMAGED = 'damaged_files_are_survived'
TOOLS = 'a_tool_that_fails_costs_no_device'
EMPTY = 'an_empty_host_has_no_device'
SOME = 'one_of_the_hosts_has_a_device'
RECORDED = 'a_recording_shows_the_same'

#: The faults: the test that finds each, its message, and the body of such a driver.
MUTANTS = {
    'it makes a device of any function that it cannot read': (
        DAMAGED,
        "it invents ['0000:00:01.0', 'fffe:fe:1f.7']",
        """
        def cards(self):
            unread = [f for f in self.host.tree.functions() if not all(f.ids)]
            return sorted(super().cards() + unread, key=lambda function: function.bdf)
        def device(self, card):
            made = super().device(card)
            made.vendor, made.model = 'abcd', 'Acme'
            return made
        """,
    ),
    'it makes a device of what its tool prints': (
        TOOLS,
        'RUBBISH: it invents',
        """
        def discover(self):
            try:
                text = self.host.run('acme-smi', 'list') or '0000:3b:00.0'
            except driver.ToolError:
                text = '0000:3b:00.0'
            found = super().discover()
            if not text.startswith('0000:3b:00.0'):
                found.append(driver.Device(type='X', vendor='abcd', model='X', address=text[9:13]))
            return sorted(found, key=lambda each: each.address)
        """,
    ),
    'it loses its devices when its tool fails, and says nothing': (
        TOOLS,
        "FAILS: it loses ['0000:3b:00.0'",
        """
        def discover(self):
            try:
                text = self.host.run('acme-smi', 'list') or ''
            except driver.ToolError:
                return []
            return super().discover()
        """,
    ),
    'it loses what its tool does not print': (
        TOOLS,
        'SILENT: it loses',
        """
        def cards(self):
            text = self.host.run('acme-smi', 'list')
            return [] if text is not None and '0000' not in text[:4] else super().cards()
        """,
    ),
    'it passes the error of a tool on that hangs': (
        TOOLS,
        'ValueError: acme-smi list: exit status 1',
        """
        def discover(self):
            try:
                self.host.run('acme-smi', 'list')
            except driver.ToolError as error:
                raise ValueError(error) from error
            return super().discover()
        """,
    ),
    'it raises where a file is missing': (
        DAMAGED,
        "where all files but those of ids are missing: AttributeError",
        """
        def vendor_board(self, card):
            return {'serial': card.read('acme_serial').lower()}
        """,
    ),
    'it raises where a file is no text': (
        DAMAGED,
        "where all files but those of ids are no text: UnicodeDecodeError",
        """
        def vendor_board(self, card):
            path = card.path / 'acme_serial'
            return {'serial': path.read_text()[:3] if path.is_file() else card.read('acme_serial')}
        """,
    ),
    'it gives two devices one address': (
        SOUND,
        'is there twice',
        """
        def discover(self):
            return [card for card in super().discover() for _ in range(2)]
        """,
    ),
    'it gives two devices one serial number': (
        SOUND,
        "one serial number: ['A1B2C3']",
        """
        def serial(self, card):
            return card.read('acme_serial')
        """,
    ),
    'its order changes from look to look': (
        SOUND,
        'two looks differ',
        """
        turned = -1
        def discover(self):
            self.turned *= -1
            return super().discover()[:: self.turned]
        """,
    ),
    'its order is one of its own': (
        SOUND,
        'not in order of addresses',
        """
        def cards(self):
            return [card for _, card in sorted((card.bdf[::-1], card) for card in super().cards())]
        """,
    ),
    'it counts its looks': (
        SOUND,
        'two looks differ',
        """
        def vendor_board(self, card):
            self.looks = getattr(self, 'looks', 0) + 1
            return {'looks': self.looks}
        """,
    ),
    'it counts the looks of all': (
        SOUND,
        'two instances differ',
        """
        def __init__(self, *args):
            super().__init__(*args)
            self.number = random.random()
        def vendor_board(self, card):
            return {'looks': self.number}
        """,
    ),
    'it reads files of this machine': (
        SOUND,
        'reads /proc/self',
        """
        def vendor_board(self, card):
            return {'nodes': len([each for each in os.listdir('/proc/self') if each == 'acme'])}
        """,
    ),
    'it reads a file of this machine that is not there': (
        SOUND,
        'reads /sys/class/acme/acme0/slot',
        """
        def vendor_board(self, card):
            try:
                return {'text': open('/sys/class/acme/acme0/slot').read()}
            except OSError:
                return {}
        """,
    ),
    'it follows a link that leads out': (
        DAMAGED,
        'reads /',
        """
        def vendor_board(self, card):
            try:
                text = (card.path / 'acme_serial').read_text('ascii')[:3]
            except (OSError, ValueError):
                text = ''
            return {'serial': text} if card.read('acme_serial') else {}
        """,
    ),
    'it runs a program by itself': (
        SOUND,
        'runs true',
        """
        def vendor_board(self, card):
            return {'said': os.system('true')}
        """,
    ),
    'its traits are no texts': (
        SOUND,
        'dropped 7, which is no trait',
        """
        def traits(self, card):
            return [7]
        """,
    ),
    'its traits are not normalised': (
        SOUND,
        "dropped 'CUSTOM_ACME-ONE', which is no trait",
        """
        def traits(self, card):
            return ['CUSTOM_ACME-ONE']
        """,
    ),
    'it takes any card for its own': (
        SOUND,
        'card of nobody',
        """
        def is_card(self, function):
            return True
        """,
    ),
    'it knows no card': (
        SOME,
        "it finds no device in any of ['acme.yaml']",
        """
        models = {('abcd', '0002'): 'Acme Two'}
        """,
    ),
    'it finds a card in nothing': (
        EMPTY,
        "finds ['0000:01:00.0'] in nothing",
        """
        def discover(self):
            return super().discover() or [
                driver.Device(type='X', vendor='abcd', model='X', address='0000:01:00.0')]
        """,
    ),
    'it reads what no recording keeps': (
        RECORDED,
        'its recording differs',
        """
        def vendor_board(self, card):
            path = self.host.root / 'sys/class/acme/acme0/slot'
            return {'slot': path.is_file()}
        """,
    ),
}  # fmt: skip


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder of a package that is installed."""
    info = tmp_path / 'acme_npu-1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: acme-npu\nVersion: 1.0\n')
    (info / 'entry_points.txt').write_text('[cyborg_lite.drivers]\nacme_npu = acme_npu:AcmeNpu\n')
    (tmp_path / 'acme_npu.py').write_text(DRIVER)
    (tmp_path / 'acme.yaml').write_text(HOST)
    (tmp_path / 'test_acme.py').write_text(TEST)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_package_of_its_own(package):
    results = inner.run(package)
    assert results.failed == {}
    assert len(results.passed) == 6


def test_each_fault_is_found(package):
    code, names = DRIVER, {}
    for number, (words, (test, _, body)) in enumerate(MUTANTS.items()):
        code += f"\nclass Mutant{number}(AcmeNpu):\n    name = 'mutant{number}'\n"
        code += textwrap.indent(textwrap.dedent(body), '    ')
        host = '' if test in (EMPTY, SOME) else '-acme.yaml'
        names[f'{test}[mutant{number}{host}]'] = words
    kinds = ', '.join(f'acme_npu.Mutant{number}' for number in range(len(MUTANTS)))
    (package / 'acme_npu.py').write_text(code)
    (package / 'test_acme.py').write_text(
        'import acme_npu\n' + TEST.replace("['acme_npu']", f'[{kinds}]')
    )
    results = inner.run(package, *(f'test_acme.py::TestContract::test_{name}' for name in names))
    said = {words: results.failed.get(f'test_{name}', 'passed') for name, words in names.items()}
    wrong = {words: text for words, text in said.items() if MUTANTS[words][1] not in text}
    assert wrong == {}


def test_a_suite_that_tests_nothing_is_red(package):
    (package / 'test_acme.py').write_text(
        TEST
        + TEST.replace('TestContract', 'TestName').replace("['acme_npu']", "['acme']")
        + TEST.replace('TestContract', 'TestPattern').replace('*.yaml', '*.tar')
        + TEST.replace('TestContract', 'TestHosts').replace("['*.yaml']", '[]')
    )
    failed = inner.run(package).failed
    assert [name.rpartition('::')[2] for name in failed] == ['TestName', 'TestPattern', 'TestHosts']
    said = [
        "'acme': expected the name of an entry point in cyborg_lite.drivers",
        "'*.tar': expected to match a host in",
        'TestHosts: expected drivers and hosts',
    ]
    assert all(words in text for words, text in zip(said, failed.values(), strict=True))


@pytest.mark.parametrize(
    ('told', 'printed'),
    [
        ('B7', 'B7'),
        (testing.Fault.MISSING, None),
        (testing.Fault.SILENT, ''),
        (testing.Fault.RUBBISH, testing.Fault.RUBBISH.value),
    ],
)
def test_a_tool_does_as_it_is_told(lay_out, told, printed):
    host = lay_out(HOST)
    assert host.run('acme-smi', 'list') == '0000:3b:00.0 A1B2C3\n'
    host.tools['acme-smi'] = told
    assert host.run('acme-smi', 'list') == printed
    host.tools['acme-smi list'] = 'this command alone'
    assert host.run('acme-smi', 'list') == 'this command alone'
    assert host.runs == ['acme-smi list'] * 3


@pytest.mark.parametrize(
    ('told', 'words'),
    [
        (testing.Fault.FAILS, "acme-smi list: exit status 1: 'no device'"),
        (testing.Fault.HANGS, 'acme-smi list: no answer within 10 s'),
        (driver.ToolError('of its own'), 'of its own'),
    ],
)
def test_a_tool_fails_as_it_is_told(lay_out, told, words):
    host = lay_out(HOST)
    host.tools['acme-smi'] = told
    with pytest.raises(driver.ToolError, match=f'^{words}$'):
        host.run('acme-smi', 'list')


def test_hosts_are_made_from_every_kind_of_spec(lay_out, tmp_path):
    assert lay_out('hgx-8gpu').name == 'hgx-8gpu'
    assert lay_out('../../fixtures/gpus.yaml').name == 'gpus'
    first = lay_out(HOST)
    second = lay_out(str(first.root))
    # A recording is not changed in place.
    assert second.root != first.root
    assert [f.bdf for f in second.tree.functions()] == [f.bdf for f in first.tree.functions()]


def test_files_that_python_loads_are_no_fault(tmp_path):
    with watching.Watch(tmp_path) as watch:
        pathlib.Path(pytest.__file__).read_text()
        (tmp_path / 'x').touch()
        (tmp_path / 'x').read_text()
        pathlib.Path('/proc/version').read_text()
    pathlib.Path('/proc/cpuinfo').read_text()
    assert watch.files == {tmp_path / 'x'}
    assert watch.strayed == ['reads /proc/version']
