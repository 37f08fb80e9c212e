# SPDX-License-Identifier: Apache-2.0
"""The driver guide, followed literally: its files are written, installed and run."""

import importlib
import inspect
import pkgutil
import re

import pytest
from stevedore import extension

from cyborg_lite import conf as options
from cyborg_lite import driver
from cyborg_lite.agent import drivers
from cyborg_lite.cmd import main
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import pci
from cyborg_lite.driver import testing
from tests import inner
from tests import pages
from tests.unit.drivers import captures

CARD = '0000:3b:00.0'
GUIDE = pages.ROOT / 'doc/source/contributor/drivers.rst'


@pytest.fixture
def guide():
    """The blocks of a language in a section, in order."""
    found = pages.blocks(GUIDE)
    return lambda section, language: [
        block for block in found if (block.section, block.language) == (section, language)
    ]


@pytest.fixture
def acme(guide, tmp_path, monkeypatch):
    """The folder of the first section, with the package as pip installs it."""
    section = 'From nothing to a table'
    texts = {language: guide(section, language)[0].text for language in ('python', 'yaml', 'ini')}
    names = {'python': 'acme_npu.py', 'yaml': 'acme.yaml', 'ini': 'up.conf'}
    for language, name in names.items():
        (tmp_path / name).write_text(texts[language])
    [project] = guide(section, 'toml')
    [point] = re.findall(r'^(acme_npu) = "(.+)"$', project.text, flags=re.M)
    assert '[project.entry-points."cyborg_lite.drivers"]' in project.text
    info = tmp_path / 'acme_npu-1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: acme-npu\nVersion: 1.0\n')
    (info / 'entry_points.txt').write_text('[cyborg_lite.drivers]\n{} = {}\n'.format(*point))
    monkeypatch.syspath_prepend(tmp_path)
    # What was installed when this process first looked stays known to it.
    monkeypatch.setattr(extension.ExtensionManager, 'ENTRY_POINT_CACHE', {})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_nothing_to_a_table(acme, guide):
    [block] = guide('From nothing to a table', '')
    up = next(words for words in block.commands if words[0] == 'cyborg-lite')
    arguments = main.parser().parse_args(up[1:])
    conf = options.load(files=arguments.config_file)
    [spec] = arguments.host
    found = drivers.Drivers(conf, hosts.find(spec, acme / 'work')).discover(patience=30)
    assert [(card.model, card.numa_node) for card in found.devices] == [
        ('Acme One', 0), ('Acme One', 1),
    ]  # fmt: skip
    assert found.drivers['acme_npu'].state == 'ok'
    assert drivers.idle(conf) == []
    assert drivers.idle(options.load(files=[])) == ['acme_npu']


def test_its_tests_pass(acme, guide):
    blocks = guide('Test it', 'python')
    for name, block in zip(('test_acme', 'conftest', 'test_cards'), blocks, strict=True):
        (acme / f'{name}.py').write_text(block.text)
    assert len(blocks[0].text.splitlines()) == 3
    results = inner.run(acme)
    assert results.failed == {}
    assert len(results.passed) == 8


SDK = [f'cyborg_lite.driver.{each.name}' for each in pkgutil.iter_modules(driver.__path__)]


def unexplained(names):
    """The public functions of these names, and methods of classes, that have no docstring."""
    for name, each in names.items():
        each = getattr(each, 'fget', None) or getattr(each, 'func', each)
        each = getattr(each, '__func__', each)
        if not name.startswith('_') and (inspect.isfunction(each) or inspect.isclass(each)):
            if not each.__doc__:
                yield name
            if inspect.isclass(each):
                yield from (f'{name}.{other}' for other in unexplained(vars(each)))


@pytest.mark.parametrize('module', ['cyborg_lite.driver', *SDK])
def test_the_reference_explains_each_method(module):
    found = vars(importlib.import_module(module))
    own = {name: each for name, each in found.items() if getattr(each, '__module__', '') == module}
    assert list(unexplained(own)) == []


@pytest.mark.parametrize(
    ('section', 'name', 'found'),
    [
        ('Something that is different', 'AcmeTraining', [('0000:3b:00.0', None)]),
        ("A vendor's tool", 'AcmeTool', [('0000:3b:00.0', 'A1B2C3')]),
        ("A vendor's library", 'AcmeLibrary', [('0000:3b:00.0', 'A1B2C3')]),
        ('Other files', 'AcmeNode', [('0000:3b:00.0', None)]),
        ('Cards without a PCI function', 'AcmeEngine', [('acme0', 'A1B2C3'), ('acme1', None)]),
    ],
)
def test_other_drivers(acme, guide, section, name, found):
    names = {}
    exec(guide(section, 'python')[0].text, names)
    described = guide(section, 'yaml') or guide('Virtual functions', 'yaml')
    (acme / 'other.yaml').write_text(described[0].text)
    cards = testing.discover(names[name], hosts.find('other.yaml', acme / 'work'))
    assert [(card.address, card.serial) for card in cards] == found


def test_links(acme, guide):
    section = 'Which cards are near each other'
    names = {}
    exec(guide(section, 'python')[0].text, names)
    (acme / 'ring.yaml').write_text(guide(section, 'yaml')[0].text)
    one, other = testing.discover(names['AcmeRing'], hosts.find('ring.yaml', acme / 'work'))
    assert one.topology == {'links': {other.address: 1}}
    assert other.topology == {'links': {one.address: 1}}


def test_virtual_functions(acme, guide):
    [described] = guide('Virtual functions', 'yaml')
    (acme / 'vf.yaml').write_text(described.text)
    names = {}
    exec(guide('From nothing to a table', 'python')[0].text, names)
    [card] = testing.discover(names['AcmeNpu'], hosts.find('vf.yaml', acme / 'work'))
    assert len(card.deployables[0].attach_handles) == 4


@pytest.fixture
def one(tmp_path, guide):
    """A driver of the guide, by its section and class, on a host with one card of these files."""

    def make(section, name, **files):
        card = captures.function(CARD, 'abcd:0001', driver='acme', files=files)
        names = {}
        for block in guide(section, 'python'):
            exec(block.text, names)
        return names[name](testing.Host(captures.host(tmp_path, [card])), options.new())

    return make


def health(subject):
    [card] = subject.look()[0]
    return card.health, card.health_reason


def test_health(one):
    subject = one('The health of a card', 'AcmeWithFan', acme_fan='failed')
    assert health(subject) == ('critical', 'acme_fan')
    file = subject.host.root / 'sys/bus/pci/devices' / CARD / 'acme_fan'
    for text, level in (('rubbish', 'unknown'), ('ok', 'ok')):
        file.write_text(text)
        assert health(subject)[0] == level


def test_a_trial_of_a_card(one):
    subject = one('The health of a card', 'AcmeWithTrial', acme_fan='failed', acme_rpm='0')
    assert health(subject) == ('critical', 'acme_fan')
    files = subject.host.root / 'sys/bus/pci/devices' / CARD
    (files / 'acme_fan').write_text('ok')
    assert health(subject) == ('critical', 'acme_fan_stopped')
    (files / 'acme_rpm').write_text('2400')
    assert health(subject) == ('ok', None)


def test_a_trial_of_a_device_without_a_pci_function(one):
    subject = one('The health of a card', 'AcmeBoard')
    tools = subject.host.tools
    tools |= {'acme-smi health': 'failed', 'acme-smi selftest --read-only': 'failed'}
    assert health(subject) == ('critical', None)
    tools['acme-smi health'] = 'ok\n'
    assert health(subject) == ('critical', 'acme_selftest')
    tools['acme-smi selftest --read-only'] = 'passed\n'
    assert health(subject) == ('ok', None)


@pytest.mark.parametrize(
    ('text', 'told'),
    [('7: 2048 MiB\n8: 1 MiB\nx: y z\n9\n', {7: 2048, 8: 1}), ('x', {}), (None, None)],
)
def test_the_memory_of_processes(one, text, told):
    files = {} if text is None else {'acme_memory': text}
    subject = one('Processes that use a card', 'AcmeWithMemory', **files)
    [card] = subject.look()[0]
    assert card.memory == told


@pytest.mark.parametrize(
    'ids', [('ABCD', '0001'), ('0xabcd', '0001'), (0xABCD, 1), ('abcd', 1), 'abcd', ('abcd',)]
)
def test_ids_that_no_card_can_have(ids):
    with pytest.raises(ValueError, match=r'Acme\.models: expected a vendor and a device id'):
        type('Acme', (pci.PciDriver,), {'models': {ids: 'Acme One'}})
