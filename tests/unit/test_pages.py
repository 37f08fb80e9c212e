# SPDX-License-Identifier: Apache-2.0
"""What the documentation says to type is understood: commands, options, code."""

import ast
from importlib import metadata
import json
import pathlib
import re

from keystoneauth1 import loading
from oslo_config import cfg
import pytest
import yaml

from cyborg_lite import conf as options
from cyborg_lite import model
from cyborg_lite.cmd import dbsync
from cyborg_lite.cmd import main
from tests import pages
from tests import support
from tests.functional import test_sdk

DOC = pages.ROOT / 'doc/source'
PAGES = [*sorted(pages.ROOT.glob('README*.rst')), *sorted(DOC.rglob('*.rst'))]
#: Groups of files that are not ours.
FOREIGN = {'Service', 'uwsgi', '[local|localrc]', 'options.entry_points', 'oslo_limit'}
#: Those of nova.conf, and those whose options depend on [GROUP] auth_type.
NOVA = {'service_user', 'cyborg'}
AUTH = NOVA | {'keystone_authtoken', 'placement', 'nova'}
#: Commands of a package that tests do not need, osc-placement, and of cliff itself.
ELSEWHERE = ('resource', 'complete')
GENERATOR = pages.ROOT / 'etc/cyborg_lite/cyborg-lite-config-generator.conf'


def blocks(*languages):
    return [
        pytest.param(block, id=f'{page.relative_to(pages.ROOT)}-{number}')
        for page in PAGES
        for number, block in enumerate(pages.blocks(page))
        if block.language in languages
    ]


def commands(name):
    """All that is typed of a command, wherever it is installed."""
    found = []
    for param in blocks('', 'shell'):
        if re.search(rf'(^|[ /(]){name} ', param.values[0].text, flags=re.M):
            for words in param.values[0].commands:
                words = words[words.index('--') + 1 :] if words[0] == 'runuser' else words
                if pathlib.PurePath(words[0]).name == name:
                    found.append(pytest.param(words[1:], id=' '.join(words[1:])[:80]))
    assert found, name
    return found


@pytest.mark.parametrize('words', commands('pip'))
def test_pip(words):
    """What is installed of ours has the extras that are named; all else is of the package index."""
    known = {*metadata.distribution('cyborg-lite').metadata.get_all('Provides-Extra')}
    assert words[0] == 'install'
    for word in (each for each in words[1:] if not each.startswith('-')):
        named = re.fullmatch(r'(\.|/opt/cyborg_lite-source|cyborg-lite)(?:\[([a-z,]+)\])?', word)
        if named and named[2]:
            assert {*named[2].split(',')} <= known
        elif not named:
            assert re.fullmatch(r'[a-z0-9-]+', word), word


@pytest.mark.parametrize('words', [*commands('git'), *commands('python3')])
def test_clone_and_environment(words):
    """The source and the environment are where the other commands and the units expect them."""
    if words[0] == 'clone':
        assert words[1:] == [
            'https://opendev.org/openstack/cyborg_lite', '/opt/cyborg_lite-source',
        ]  # fmt: skip
    elif words[:2] == ['-m', 'venv']:
        assert words[2:] in (['/opt/cyborg_lite'], ['/opt/cyborg_lite-new'], ['.venv'])


@pytest.mark.parametrize('words', commands('cyborg-lite'))
def test_cyborg_lite(words):
    main.parser().parse_args(words)


@pytest.mark.parametrize('words', commands('cyborg-lite-dbsync'))
def test_dbsync(words):
    dbsync.parser().parse_args(words)


@pytest.mark.parametrize('words', commands('cyborg-lite-status'))
def test_status(words):
    if words[:1] == ['--config-file']:
        del words[:2]
    assert words in (['upgrade', 'check'], ['audit'], ['audit', '--fix'])


@pytest.fixture(scope='module')
def plugins():
    """All commands of python-openstackclient, and ours, by their words."""
    found = {
        tuple(point.name.split('_')): point
        for distribution in metadata.distributions()
        for point in distribution.entry_points
        if point.group.startswith('openstack.')
    }
    text = pages.ROOT.joinpath('setup.cfg').read_text()
    section = text.partition('openstack.accelerator.v2 =')[2].partition('cyborg_lite.drivers')[0]
    # As they will be installed: what is installed may be older.
    for name, value in re.findall(r'(accelerator_\w+) = (\S+)', section):
        point = metadata.EntryPoint(name, value, 'openstack.accelerator.v2')
        found[tuple(name.split('_'))] = point
    return found


@pytest.mark.parametrize('words', commands('openstack'))
def test_openstack(words, plugins):
    while words[0].startswith('--os-'):
        words = words[2:]
    if words[0] in ELSEWHERE:
        return
    name = next(tuple(words[:n]) for n in range(len(words), 0, -1) if tuple(words[:n]) in plugins)
    # The options of a command stand in its parser; it needs no application for that.
    kind = plugins[name].load()
    kind(None, None).get_parser(' '.join(name)).parse_args(words[len(name) :])


@pytest.fixture(scope='module')
def known():
    """The names of all options by group: those of the sample configuration."""
    found = {}
    namespaces = re.findall(r'^namespace = (\S+)$', GENERATOR.read_text(), flags=re.M)
    # What is installed may be older; the options of clients stand below.
    for namespace in set(namespaces) - {'cyborg_lite.clients'}:
        [point] = metadata.entry_points(group='oslo.config.opts', name=namespace)
        for group, opts in point.load()():
            name = str(getattr(group, 'name', group) or 'DEFAULT')
            found.setdefault(name, set()).update(opt.dest for opt in opts)
    auth = [*loading.get_auth_common_conf_options(), *loading.get_session_conf_options()]
    auth += [*loading.get_auth_plugin_conf_options('password')]
    auth += loading.get_adapter_conf_options()
    for group in AUTH:
        found.setdefault(group, set()).update(opt.dest for opt in auth)
    found['service_user'].add('send_service_user_token')
    return found


@pytest.mark.parametrize('block', blocks('ini'))
def test_configuration(block, known, tmp_path):
    file, sections = tmp_path / 'a.conf', {}
    file.write_text(block.text)
    cfg.ConfigParser(str(file), sections).parse()
    for group in set(sections) - FOREIGN:
        unknown = {name.replace('-', '_') for name in sections[group]} - known[group]
        assert not unknown, f'[{group}] {unknown}'
    if not set(sections) & (FOREIGN | NOVA):
        options.load(files=[str(file)])


@pytest.mark.parametrize('block', blocks('python'))
def test_python(block):
    ast.parse(block.text)


@pytest.mark.parametrize('block', blocks('yaml', 'json'))
def test_data(block):
    (json.loads if block.language == 'json' else yaml.safe_load)(block.text)


def test_documents_that_are_linked_to():
    """Sphinx warns of those within ``doc``; here of files of the source that pages name."""
    missing = []
    for page in PAGES:
        for path in re.findall(r'``((?:etc|doc|tests|devstack)/[\w./-]+)``', page.read_text()):
            if 'BRANCH' not in path and not (pages.ROOT / path).exists():
                missing.append((page.name, path))
    assert missing == []


def test_the_sample_configuration_has_the_services_that_are_called():
    assert 'namespace = cyborg_lite.clients\n' in GENERATOR.read_text()
    groups = {group.name: (group, opts) for group, opts in options.list_client_opts()}
    group, opts = groups.pop('service_user')
    assert group.help.startswith('For nova.conf')
    assert {'send_service_user_token', 'auth_type', 'username'} <= {opt.dest for opt in opts}
    assert set(groups) == {'placement', 'nova'}
    for group, opts in groups.values():
        values = {opt.dest: opt.default for opt in opts}
        assert {'auth_type', 'auth_url', 'username', 'region_name', 'cafile'} <= set(values)
        assert values['timeout'] == 20
        assert values['valid_interfaces'] == ['internal', 'public']
        assert ('[service_user]' in group.help) == (group.name == 'nova')


def test_an_example_of_the_sdk_works(service):
    service.report(support.card())
    page = DOC / 'start/automation.rst'
    [block] = [each for each in pages.blocks(page) if each.language == 'python']
    names = {}
    exec(block.text, names)
    with test_sdk.served(service.embedded.application) as url:
        assert names['free'](url) == [row.uuid for row in service.rows(model.AttachHandle)]


def test_urls_of_examples_are_served(service):
    page = DOC / 'start/automation.rst'
    urls = re.findall(r'http://127.0.0.1:6666(/\S+?)[\'\n ]', page.read_text())
    paths = [url for url in urls if url.startswith('/v2/')]
    assert len(paths) == 4
    assert [service.api.get(path).status_int for path in paths] == [200] * 4


@pytest.mark.parametrize(
    'page', [page for page in PAGES if page.name.endswith('.zh.rst')], ids=lambda page: page.name
)
def test_command_blocks_are_the_same_in_chinese(page):
    english = page.with_name(page.name.replace('.zh.rst', '.rst'))
    texts = [[(each.language, each.text) for each in pages.blocks(one)] for one in (page, english)]
    assert texts[0] == texts[1]
    assert texts[0]
