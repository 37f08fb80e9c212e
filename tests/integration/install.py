# SPDX-License-Identifier: Apache-2.0
"""cyborg_lite as doc/source/install/openstack.rst has an operator install it.

What the page types is typed, and its files are written as they stand.  Only names are replaced:
those of machines, directories and passwords.  What changes the machine itself (apt, useradd,
systemctl) is left out: the units are tried by test_systemd.py.
"""

from __future__ import annotations

import collections.abc
import contextlib
import pathlib
import re

import sqlalchemy as sa

from tests import pages
from tests.integration import cloud as cloud_
from tests.integration import process
from tests.integration import servers

PAGE = pages.blocks(pages.ROOT / 'doc/source/install/openstack.rst')
UNIT = pages.ROOT / 'etc/systemd/cyborg-lite-api.service'
#: Where the guide installs commands.
OPT = '/opt/cyborg_lite/bin/'


class Guide:
    """The blocks of the page, with names of this machine."""

    def __init__(self, names: collections.abc.Mapping[str, str]) -> None:
        """:param names: what stands in the place of what; the first ones first."""
        self._names = names

    def text(self, section: str, language: str, number: int = 0) -> str:
        found = [b for b in PAGE if (b.section, b.language) == (section, language)]
        return self._named(found[number].text)

    def commands(self, section: str, name: str) -> list[list[str]]:
        """The arguments of each call of a command in a section."""
        found = []
        for block in PAGE:
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


class Installation:
    """cyborg_lite in a cloud: a controller and a compute node."""

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
        port = servers.free_port()
        url = sa.make_url(database)
        self.guide = Guide(
            {
                'http://controller:5000/v3': cloud.url,
                'http://controller:6666': f'http://127.0.0.1:{port}',
                '@controller/cyborg_lite?': f'@127.0.0.1:{url.port}/cyborg_lite?',
                '@controller/': f'@{bus.partition("@")[2]}',
                'SECRET': cloud_.PASSWORD,
                'compute-1': host,
                # As few processes as can be.
                '0.0.0.0:6666 --workers 4': f'127.0.0.1:{port} --workers 1',
            }
        )
        #: of the database, as the conductor has it
        self.connection = sa.make_url(
            re.search(r'^connection = (.*)$', self.guide.text('The controller', 'ini'), re.M)[1]
        )
        self.conductor: process.Server

    def prepare(self, openstack: process.Run) -> None:
        """Make what the database, the bus and Keystone have of it.

        :param openstack: runs the command of this name.
        """
        database, bus = self._servers
        engine = sa.create_engine(database)
        with engine.begin() as connection:
            for statement in filter(str.strip, self.guide.text('The database', 'sql').split(';')):
                connection.exec_driver_sql(statement.replace('%', '%%'))
        engine.dispose()
        servers.administer(bus, self.guide.text('The bus', 'shell'))
        for words in self.guide.commands('Keystone', 'openstack'):
            openstack(*words, **self._cloud.environ('admin'))

    @contextlib.contextmanager
    def run(self, controller: str, node: str) -> collections.abc.Iterator[None]:
        """Have its services run.

        :param controller: what the tests set there beside what the page does.
        :param node: the same of the compute node.
        """
        environ = self._configure('controller', controller)
        for command in ('cyborg-lite-dbsync', 'cyborg-lite-status'):
            for words in self.guide.commands('The controller', command):
                process.run(command, *words, **environ)
        with contextlib.ExitStack() as stack:
            conductor = self._daemon('conductor', **environ)
            _, self.conductor = process.enter(stack, self._api(**environ), conductor)
            # It ends before the conductor, for whose answer it may wait.
            with self.agent('node', node):
                yield

    def agent(self, name: str, more: str) -> contextlib.AbstractContextManager[process.Server]:
        """The agent of a compute node that differs from the first in this configuration."""
        return self._daemon('agent', **self._configure(name, more, section='A compute node'))

    def log(self) -> str:
        """What the conductor has logged."""
        return (self._place / 'controller' / 'log').read_text()

    def _configure(self, name: str, more: str, section: str = 'The controller') -> dict[str, str]:
        """Write the files of a machine; returns the environment that its commands have."""
        home = self._place / name
        directory = home / '.cyborg_lite'
        own = directory / 'cyborg_lite.conf.d'
        own.mkdir(parents=True)
        (directory / 'cyborg_lite.conf').write_text(self.guide.text(section, 'ini'))
        (own / 'tests.conf').write_text(more)
        return {'HOME': str(home)}

    @staticmethod
    def _daemon(name: str, **environ: str) -> contextlib.AbstractContextManager[process.Server]:
        log = pathlib.Path(environ['HOME'], 'log')
        return process.serving(f'cyborg-lite-{name}', ready='Run service', log=log, **environ)

    def _api(self, **environ: str) -> contextlib.AbstractContextManager[process.Server]:
        """What the unit starts, as the drop-in of the page has it listen."""
        start = re.search(r'^ExecStart=(.*)$', UNIT.read_text(), re.M)[1].removeprefix(OPT)
        drop_in = self.guide.text('The controller', 'ini', 1)
        return process.serving(
            *start.split(),
            ready='Booting worker',
            log=pathlib.Path(environ['HOME'], 'api'),
            GUNICORN_CMD_ARGS=re.search('GUNICORN_CMD_ARGS=([^"]*)', drop_in)[1],
            **environ,
        )
