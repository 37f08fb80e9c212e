# SPDX-License-Identifier: Apache-2.0
"""Install cyborg_lite by a page of doc/source/install.

The commands of the page are run, and its files are written.  Only the names of machines, files and
passwords are replaced.  Commands that change this machine (apt, useradd, systemctl) are not run:
test_systemd.py tests the units, and test_guides.py the others.
"""

from __future__ import annotations

import collections.abc
import contextlib
import pathlib
import re
import sys
import time

import sqlalchemy as sa

from tests import pages
from tests.integration import cloud as cloud_
from tests.integration import process
from tests.integration import servers

DOC = pages.ROOT / 'doc/source'
UNIT = pages.ROOT / 'etc/systemd/cyborg-lite-api.service'
#: Where the pages install commands.
OPT = '/opt/cyborg_lite/bin/'

Running = contextlib.AbstractContextManager[process.Server]


class Guide:
    """The blocks of a page, with names of this machine."""

    def __init__(self, page: str, names: collections.abc.Mapping[str, str] | None = None) -> None:
        """:param names: the replacement of each text of the page, in order."""
        self._blocks = pages.blocks(DOC / page)
        self._names = names or {}

    def text(self, section: str, language: str, number: int = 0) -> str:
        found = [b for b in self._blocks if (b.section, b.language) == (section, language)]
        return self._named(found[number].text)

    def commands(self, section: str, name: str) -> list[list[str]]:
        """The arguments of each call of a command in a section."""
        found = []
        for block in self._blocks:
            for words in block.commands if block.language == 'shell' else ():
                words = words[words.index('--') + 1 :] if words[0] == 'runuser' else words
                if block.section == section and words[0].removeprefix(OPT) == name:
                    found.append([self._named(word) for word in words[1:]])
        assert found, f'{section} does not call {name}'
        return found

    def _named(self, text: str) -> str:
        for old, new in self._names.items():
            text = text.replace(old, new)
        return text


class Machine:
    """The services of one machine: their home directory has the configuration of a page."""

    def __init__(self, home: pathlib.Path, conf: str, more: str) -> None:
        """:param more: settings of the tests beside the page."""
        self._home = home
        directory = home / '.cyborg_lite'
        own = directory / 'cyborg_lite.conf.d'
        own.mkdir(parents=True)
        (directory / 'cyborg_lite.conf').write_text(conf)
        (own / 'tests.conf').write_text(more)
        #: of the database, if it has one
        self.connection = ''.join(re.findall(r'^connection = (.*)$', conf, re.M))

    def run(self, command: str, words: list[str]) -> None:
        process.run(command, *words, HOME=str(self._home))

    def daemon(self, name: str) -> Running:
        command = f'cyborg-lite-{name}'
        log = self._home / name
        return process.serving(command, ready='starts (on|with)', log=log, HOME=str(self._home))

    def api(self, drop_in: str) -> Running:
        """The command of the unit, with the listener of its drop-in."""
        start = re.search(r'^ExecStart=(.*)$', UNIT.read_text(), re.M)[1].removeprefix(OPT)
        return process.serving(
            *start.split(),
            ready='Booting worker',
            log=self._home / 'api',
            GUNICORN_CMD_ARGS=re.search('GUNICORN_CMD_ARGS=([^"]*)', drop_in)[1],
            HOME=str(self._home),
        )

    def uwsgi(self, words: list[str], ini: str) -> Running:
        """The command of a page for uWSGI, with the file that its last argument names."""
        file = self._home / pathlib.Path(words[-1]).name
        file.write_text(ini)
        return process.serving(
            *('uwsgi', *words[:-1], str(file)),
            ready='spawned uWSGI worker',
            log=self._home / 'uwsgi',
            HOME=str(self._home),
        )

    def log(self, name: str) -> str:
        return (self._home / name).read_text()


def create_database(url: str, text: str) -> None:
    """Run the SQL of a page as the administrator of the server."""
    engine = sa.create_engine(url, isolation_level='AUTOCOMMIT')
    with engine.connect() as connection:
        for statement in filter(str.strip, text.split(';')):
            connection.exec_driver_sql(statement.replace('%', '%%'))
    engine.dispose()


class OpenStack:
    """openstack.rst: a controller and a compute node in a cloud."""

    def __init__(
        self,
        place: pathlib.Path,
        cloud: cloud_.Cloud,
        database: servers.Address,
        bus: servers.Address,
        host: str,
    ) -> None:
        """:param host: the name of the compute node."""
        self._place = place
        self._cloud = cloud
        self._servers = database, bus
        port, other = servers.free_port(), servers.free_port()
        #: the API under uWSGI
        self.uwsgi_url = f'http://127.0.0.1:{other}'
        self.guide = Guide(
            'install/openstack.rst',
            {
                'http://controller:5000/v3': cloud.url,
                'http://controller:6666': f'http://127.0.0.1:{port}',
                '@controller/cyborg_lite?': f'@127.0.0.1:{sa.make_url(database).port}/cyborg_lite?',
                '@controller/': f'@{bus.partition("@")[2]}',
                'SECRET': cloud_.PASSWORD,
                'compute-1': host,
                # The minimum of processes.
                '0.0.0.0:6666 --workers 4': f'127.0.0.1:{port} --workers 1',
                '127.0.0.1:6666': f'127.0.0.1:{other}',
                'virtualenv = /opt/cyborg_lite': f'virtualenv = {sys.prefix}',
            },
        )
        self.controller: Machine
        self.conductor: process.Server
        #: how long each step took, in seconds
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> collections.abc.Iterator[None]:
        """Measure a step of the page."""
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)

    def prepare(self, openstack: process.Run) -> None:
        """Create its database, its virtual host, and its user and endpoints in Keystone.

        :param openstack: runs the command of this name.
        """
        database, bus = self._servers
        with self.step('The database'):
            create_database(database, self.guide.text('The database', 'sql'))
        with self.step('The bus'):
            servers.administer(bus, self.guide.text('The bus', 'shell'))
        with self.step('Keystone'):
            for words in self.guide.commands('Keystone', 'openstack'):
                openstack(*words, **self._cloud.environ('admin'))

    @contextlib.contextmanager
    def run(self, controller: str, node: str) -> collections.abc.Iterator[None]:
        """Run its services.

        :param controller: settings of the tests for the controller.
        :param node: settings of the tests for the compute node.
        """
        section = 'The controller'
        conf = self.guide.text(section, 'ini')
        self.controller = Machine(self._place / 'controller', conf, controller)
        with contextlib.ExitStack() as stack:
            with self.step(section):
                for command in ('cyborg-lite-dbsync', 'cyborg-lite-status'):
                    for words in self.guide.commands(section, command):
                        self.controller.run(command, words)
                api = self.controller.api(self.guide.text(section, 'ini', 1))
                _, self.conductor = process.enter(stack, api, self.controller.daemon('conductor'))
            # It ends before the conductor, for whose answer it may wait.
            with self.step('A compute node'):
                stack.enter_context(self.agent('node', node))
            yield

    @contextlib.contextmanager
    def uwsgi(self) -> collections.abc.Iterator[pathlib.Path]:
        """Run the API under uWSGI too; gives its ``log_dir``."""
        section = 'The controller'
        logs = self._place / 'logs'
        logs.mkdir()
        more = f'[DEFAULT]\nlog_dir = {logs}\n'
        machine = Machine(self._place / 'uwsgi', self.guide.text(section, 'ini'), more)
        [words] = self.guide.commands(section, 'uwsgi')
        with machine.uwsgi(words, self.guide.text(section, 'ini', 2)):
            yield logs

    def agent(self, name: str, more: str) -> Running:
        """The agent of a compute node.

        :param more: settings of the tests beside the page.
        """
        conf = self.guide.text('A compute node', 'ini')
        return Machine(self._place / name, conf, more).daemon('agent')
