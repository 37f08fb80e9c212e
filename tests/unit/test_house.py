# SPDX-License-Identifier: Apache-2.0
"""The house stands as ARCHITECTURE.md draws it."""

import ast
import graphlib
from importlib import metadata
import pathlib
import re
import subprocess
import sys

from oslo_service import backend
import pytest

import cyborg_lite
from cyborg_lite import conf as options

ROOT = pathlib.Path(cyborg_lite.__file__).parent
FILES = sorted(ROOT.rglob('*.py'))

#: What each room may import of the others.  Rooms are what is directly below the package.
ROOMS = {
    # the ground
    'model': set(),
    'shims': set(),
    'accounts': set(),
    'conf': set(),
    'exception': set(),
    'context': {'exception'},
    'policy': {'conf', 'exception', 'shims'},
    'worker': {'context'},
    'client': set(),
    # upon it
    'clients': {'exception'},
    'contract': {'model'},
    'delivery': set(),
    'osc': {'client'},
    'remote': {'client'},
    'renewing': {'client', 'remote'},
    'door': {'client', 'remote', 'renewing'},
    'server': {'unix'},
    'unix': {'client'},
    'rpc': {'context', 'exception', 'shims'},
    'db': {'exception', 'model', 'shims'},
    'driver': {'contract', 'model', 'unix'},
    'drivers': {'driver'},
    # the three services: they know nothing of each other
    'api': {
        'accounts', 'client', 'context', 'db', 'delivery', 'exception', 'model', 'policy', 'rpc',
        'shims', 'unix',
    },
    'conductor': {
        'accounts', 'clients', 'context', 'contract', 'db', 'exception', 'model', 'worker',
    },
    'agent': {
        'accounts', 'client', 'context', 'contract', 'delivery', 'driver', 'exception', 'model',
        'rpc', 'unix', 'worker',
    },
    # what puts them together
    'startup': {'clients', 'conf', 'db', 'exception'},
    'service': {
        'agent', 'api', 'conductor', 'conf', 'context', 'db', 'driver', 'exception', 'rpc',
        'server', 'shims', 'unix',
    },
    'cmd': {
        'agent', 'client', 'conductor', 'conf', 'db', 'delivery', 'driver', 'exception', 'model',
        'remote', 'rpc', 'server', 'service', 'startup', 'unix',
    },
    'wsgi': {'api', 'cmd', 'conf', 'db', 'exception', 'rpc', 'service', 'startup'},
}  # fmt: skip
GROUPS = (
    'console_scripts',
    'cyborg_lite.drivers',
    'cyborg_lite.placing',
    'keystoneauth1.plugin',
    'openstack.accelerator.v2',
    'oslo.config.opts',
    'oslo.policy.enforcer',
    'oslo.policy.policies',
)
#: Tests of no one file.
MORE = {
    'test_ci',
    'test_devstack',
    'test_driver_guide',
    'test_house',
    'test_man_pages',
    'test_mutants',
    'test_pages',
    'test_readme',
    'conductor/test_machine',
    'conductor/test_machine_cards',
    'conductor/test_machine_queue',
    'conductor/test_machine_reservations',
    'conductor/test_yardstick',
    'drivers/test_captures',
    'drivers/test_every_driver',
    'drivers/test_trials',
    'drivers/test_support',
}
ENTRY_POINTS = [
    point for point in metadata.distribution('cyborg-lite').entry_points if point.group in GROUPS
]
COMMANDS = [point.module for point in ENTRY_POINTS if point.group == 'console_scripts']


def name(file):
    parts = file.relative_to(ROOT.parent).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def room(module):
    return module.split('.')[1] if '.' in module else ''


def imports(file):
    """The modules that a file imports, wherever in it; relative imports do not occur."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, file
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def entered(file):
    """The rooms of ours that a file imports from, its own aside."""
    ours = {room(module) for module in imports(file) if module.startswith('cyborg_lite.')}
    return ours - {room(name(file))}


def fresh(*modules):
    """Import modules in a process of its own; returns whether eventlet came along."""
    text = ''.join(f'import {module}\n' for module in modules)
    text += "import sys\nprint('eventlet' in sys.modules)"
    return subprocess.run(
        [sys.executable, '-c', text], check=True, capture_output=True, text=True
    ).stdout.strip()


#: What the API alone is made of, and what reads and writes databases.
API = {'pecan', 'wsme', 'jsonschema', 'cyborg_lite.api.app'}
DATABASE = {'alembic', 'oslo_db.sqlalchemy', 'cyborg_lite.db', 'cyborg_lite.conductor.manager'}


@pytest.mark.parametrize(
    ('service', 'others'), [('agent', API | DATABASE), ('conductor', API | {'alembic'})]
)
def test_a_service_loads_nothing_of_the_others(service, others):
    """Each process kept in memory what any of them needs."""
    text = (
        f'import cyborg_lite.cmd.{service}, cyborg_lite.{service}.manager, sys\n'
        f'print(*sorted({others} & sys.modules.keys()))'
    )
    run = [sys.executable, '-c', text]
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout == '\n'


def test_a_start_with_nothing_to_migrate_does_not_load_alembic(tmp_path):
    """It takes a tenth of the time until the first answer."""
    text = (
        'import sys\n'
        'from cyborg_lite import conf, service\n'
        'import cyborg_lite.cmd.up\n'
        f'options = conf.load(files=[], database__connection="sqlite:///{tmp_path}/x.db")\n'
        'service.Embedded(options)\n'
        'print("alembic" in sys.modules)\n'
    )
    run = [sys.executable, '-c', text]
    said = [subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [each.stdout for each in said] == ['True\n', 'False\n']


@pytest.mark.parametrize('file', FILES, ids=name)
def test_imports_run_down(file):
    if file != ROOT / '__init__.py':
        assert entered(file) <= ROOMS[room(name(file))]


def test_the_package_itself_imports_only_the_door():
    """A program that uses accelerators has none of the service's libraries."""
    assert {room(each) for each in imports(ROOT / '__init__.py')} == {'door'}
    files = [ROOT / f'{each}.py' for each in ('door', *ROOMS['door'])]
    found = {each.partition('.')[0] for file in files for each in imports(file)}
    assert found <= {'cyborg_lite', *sys.stdlib_module_names}


def test_the_table_has_no_edge_that_is_not_used():
    used = {each: set() for each in ROOMS}
    for file in FILES:
        if file != ROOT / '__init__.py':
            used[room(name(file))] |= entered(file)
    assert used == ROOMS


def test_there_is_a_way_down_from_every_room():
    assert list(graphlib.TopologicalSorter(ROOMS).static_order())


def private(file):
    """The private names that a file uses and does not define."""
    tree = ast.parse(file.read_text())
    defined, used = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            defined.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = '.'.join([getattr(node, 'module', ''), *(each.name for each in node.names)])
            used |= set(names.split('.')) - {'__future__'}
    return {each for each in used - defined if each.startswith('_') and not each.endswith('__')}


def test_private_names_of_libraries_are_in_one_file():
    public = {'_exit', '_replace'}
    for file in FILES:
        if file != ROOT / 'shims.py':
            assert private(file) <= public, file
    assert private(ROOT / 'shims.py')


def test_the_services_meet_in_rpc_alone():
    services = {'api', 'conductor', 'agent'}
    for each in services:
        assert not ROOMS[each] & (services | {'service', 'cmd', 'wsgi'})
    # The conductor alone writes; the agent alone touches hardware.
    assert 'db' not in ROOMS['agent']
    assert not {'driver', 'drivers'} & (ROOMS['api'] | ROOMS['conductor'])
    assert 'drivers' not in set().union(*ROOMS.values())


#: Modules of plain data in, plain data out; and the libraries that they need for that.
PURE = {f'cyborg_lite.conductor.{each}' for each in ('backfill', 'placing', 'topology')}
PLAIN = {
    '__future__', 'collections', 'dataclasses', 'functools', 'itertools', 'json', 'stevedore',
    'typing',
}  # fmt: skip
INPUT = {'open', 'input', 'print', 'exec', 'eval', '__import__'}


@pytest.mark.parametrize('module', sorted(PURE))
def test_what_chooses_accelerators_reads_and_writes_nothing(module):
    [file] = [each for each in FILES if name(each) == module]
    for each in imports(file):
        assert each in PURE or each.partition('.')[0] in PLAIN, each
    names = {n.id for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Name)}
    assert not names & INPUT


def test_only_the_conductor_writes():
    for file in FILES:
        if room(name(file)) not in ('conductor', 'db'):
            assert '.writer(' not in file.read_text(), file


@pytest.mark.parametrize('file', FILES, ids=name)
def test_nothing_asks_for_eventlet(file):
    assert not [module for module in imports(file) if module.split('.')[0] == 'eventlet']


@pytest.mark.parametrize('module', [*COMMANDS, 'tests'])
def test_native_threads(module):
    """oslo.service takes eventlet where it is installed, and itself installs it."""
    assert fresh(module) == 'False'


def test_native_threads_are_chosen():
    """Else oslo.service takes eventlet where a service is launched."""
    assert backend.get_backend_type() == backend.BackendType.THREADING


def test_native_threads_whatever_is_imported():
    modules = [name(f) for f in FILES if 'alembic' not in f.parts and 'wsgi' not in f.parts]
    assert fresh('cyborg_lite.cmd', *modules) == 'False'


def test_whatever_starts_the_service_chooses_threads_first():
    """The package ``cmd`` does; a command is in it, and the WSGI module imports it first."""
    found = imports(ROOT / 'wsgi' / 'api.py')
    others = [m for m in found if m.partition('.')[0] not in sys.stdlib_module_names]
    # Also before libraries: oslo.log 7.0 imports eventlet where it is installed.
    assert others[0] == 'cyborg_lite.cmd'
    assert {room(command) for command in COMMANDS} == {'cmd'}


@pytest.mark.parametrize('point', ENTRY_POINTS, ids=lambda point: f'{point.group}-{point.name}')
def test_entry_point_loads(point):
    assert callable(point.load())


def test_every_group_has_entry_points():
    assert {point.group for point in ENTRY_POINTS} == set(GROUPS)


def test_every_driver_has_an_entry_point():
    points = {p.name: p.load() for p in ENTRY_POINTS if p.group == 'cyborg_lite.drivers'}
    modules = {f.stem for f in (ROOT / 'drivers').glob('*.py')} - {'__init__'}
    assert set(points) == modules == {driver.name for driver in points.values()}
    # Nearly every host has SSDs and network cards for itself.
    enabled = options.load(files=[]).agent.enabled_drivers
    assert set(enabled) == modules - {'fake', 'nic', 'nvme_ssd', 'spdk'}


@pytest.mark.parametrize('file', FILES, ids=name)
def test_file_is_not_too_long(file):
    assert len(file.read_text().splitlines()) <= 500


@pytest.mark.parametrize('file', FILES, ids=name)
def test_file_says_its_licence_and_its_purpose(file):
    text = file.read_text()
    assert text.startswith('# SPDX-License-Identifier: Apache-2.0\n')
    assert file.name == '__init__.py' or ast.get_docstring(ast.parse(text))


def test_tests_mirror_the_source():
    """Each test file is named after the file or the room that it tests."""
    here = pathlib.Path(__file__).parent
    known = {file.relative_to(ROOT).with_suffix('') for file in FILES}
    known |= {place.parent for place in known}
    for test in here.rglob('test_*.py'):
        place = test.relative_to(here).with_suffix('')
        if str(place) not in MORE:
            assert place.with_name(place.name.removeprefix('test_')) in known


#: What takes the link to an attach handle from requests, and what sets it.
FREES = re.compile(r'delete\(model\.ARQ\)|holding\.NOTHING')
SETS = re.compile(r"attach_handle_id'?\s*(?::(?! orm)|=(?!=))")


def pieces(file):
    """The text of each function, and of each other statement outside functions."""
    text = file.read_text()
    nodes = ast.parse(text).body
    parts = [node.body if type(node) is ast.ClassDef else [node] for node in nodes]
    return [ast.get_source_segment(text, each) for part in parts for each in part]


def test_whatever_frees_an_accelerator_counts_its_usage():
    frees = [each for file in FILES for each in pieces(file) if FREES.search(each)]
    assert len(frees) >= 3
    assert [each for each in frees if 'holding.Ending(' not in each] == []


def test_the_link_to_an_accelerator_is_set_in_one_place():
    assert SETS.search('values(attach_handle_id=None)') and SETS.search("{'attach_handle_id': 1}")
    files = {file.name for file in FILES if SETS.search(file.read_text())}
    assert files == {'holding.py'}, 'see conductor/holding.py'
