# SPDX-License-Identifier: Apache-2.0
"""A machine whose cards have real device nodes, and users who work on it."""

import contextlib
from importlib import metadata
import json
import os
import subprocess
import sys
import threading
import unittest.mock

from stevedore import extension

from cyborg_lite import client
from cyborg_lite import driver
from cyborg_lite import service as services
from cyborg_lite import unix
from cyborg_lite.agent import drivers
from cyborg_lite.delivery import needs
from tests import devices
from tests import support
from tests.functional import test_leases

BOUND = test_leases.BOUND
#: A command of ours as a user; what it needs is imported before, as that user may not read it.
AS = """
import os, sys
from cyborg_lite.cmd import alloc, main, ps, release, run
os.setgroups([]), os.setgid({uid}), os.setuid({uid})
sys.exit(main.main())
"""
#: Opens a node, says so, and keeps it until its input ends.
OPEN = """
import os, sys
os.setgroups([]), os.setgid({uid}), os.setuid({uid})
try:
    for path in sys.argv[1:]:
        os.open(path, os.O_RDWR)
    print('opened', flush=True)
except OSError as error:
    print(error.errno, flush=True)
sys.stdin.read()
"""


class Npus(driver.Driver):
    """Four cards, each with a node."""

    name = 'box'
    #: the pids that it lists for the card with each number; None if it lists none
    listed = None
    #: how much memory of the card with each number a process has, in MiB, by its pid
    memory: dict[int, dict[int, int]] = {}
    #: how busy each card is, in percent; None if they do not tell
    utilization = None
    #: the tool that tells the health of the cards; None if there is none
    tool = None
    #: what a scan waits for
    free = threading.Event()
    free.set()

    def discover(self):
        self.free.wait(test_leases.BOUND)
        try:
            self.host.run(self.tool or 'true', timeout=0.1)
        except driver.ToolError as error:
            self.note(error)
        return [self._card(number) for number in range(len(devices.NUMBERS))]

    def _card(self, number):
        about = {'type': 'AICHIP', 'resource_class': 'CUSTOM_NPU', 'model': 'Box NPU'}
        card = support.card(f'3{number}', vendor_board={'index': number}, **about)
        card.processes = None if self.listed is None else frozenset(self.listed[number])
        card.memory = self.memory.get(number)
        card.utilization = self.utilization
        card.health, card.health_reason = self.untold
        [part] = card.deployables
        part.driver_name = self.name
        part.attach_handles[0].form = 'whole'
        return card


class Box(test_leases.Machine):
    """A service for this machine, whose cards are four device nodes."""

    #: further variables of processes
    env: dict[str, str] = {}

    def __init__(self, url, tmp_path, place, **options):
        self.nodes = [
            devices.make(place / f'npu{number}', device)
            for number, device in enumerate(devices.NUMBERS)
        ]
        self.shared = devices.make(place / 'manager', devices.SHARED)
        options.setdefault('agent__access_file', str(tmp_path / 'agent.access'))
        super().__init__(url, tmp_path, **options)

    def start(self):
        options = {'agent__enabled_drivers': ['box'], 'agent__socket': self.socket}
        options |= {'agent__report_interval': 3600} | self.options
        self.service = support.Service(self.url, [driver.Host.local('box')], **options)
        [agent] = self.service.embedded.agents
        assert agent.manager.reported.wait(BOUND)
        self.agent = agent.manager
        self.served = self.service.embedded._services[1]._local._default

    def has_looked(self):
        """Have the agent do a round of its work."""
        self.until(lambda: self.served.compared)
        self.served.guard()

    def as_(self, uid, *arguments, **more):
        """Start a command of ours as a user."""
        return self._start([sys.executable, '-c', AS.format(uid=uid), *arguments], **more)

    def says(self, uid, *arguments):
        """The status and the output of a command of ours as a user."""
        made = self.as_(uid, *arguments)
        out, err = made.communicate(timeout=BOUND)
        return made.returncode, out, err

    @contextlib.contextmanager
    def listing(self):
        """A function that runs ``cyborg-lite ps`` at a socket of the API: its output."""
        path = f'{self.socket}.api'
        listener = unix.listen(path, None, services.BACKLOG)
        server = services.server.Server(self.service.embedded.application, listener)
        thread = threading.Thread(target=server.serve)
        thread.start()

        def ps(*arguments):
            status, out, err = self.run('ps', '--url', f'{client.UNIX}{path}', *arguments)
            assert (status, err) == (0, '')
            return out

        try:
            yield ps
        finally:
            server.stop()
            thread.join()

    def opening(self, uid, *paths):
        """A process of a user that has tried to open nodes, and what it said."""
        made = self._start([sys.executable, '-S', '-c', OPEN.format(uid=uid), *paths])
        return made, made.stdout.readline().strip()

    def _start(self, argv, **more):
        made = subprocess.Popen(
            argv,
            **dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE) | more,
            text=True,
            env=os.environ | {client.VARIABLE: self.socket} | self.env,
        )
        self.started.append(made)
        return made

    def accelerators(self):
        """The accelerators as the API shows them, in the order of their nodes."""
        found = self.service.api.get('/v2/accelerators').json['accelerators']
        return sorted(found, key=lambda each: each['ids']['index'])

    def node_of(self, lease):
        [accelerator] = lease['accelerators']
        return self.nodes[accelerator['ids']['index']]


@contextlib.contextmanager
def patched(place):
    """Make the driver of the cards known, whose nodes are in a directory of /dev."""
    told = {
        'resource': 'npu', 'variable': 'BOX_VISIBLE_DEVICES', 'shared': [f'{place}/manager'],
        'use': 'open',
        'forms': {'whole': {'name': '{index}', 'nodes': [f'{place}/npu{{index}}']}},
    }  # fmt: skip
    parsed = needs.parse(json.loads(json.dumps(told)), 'box.toml')
    point = metadata.EntryPoint('box', 'tests.functional.boxes:Npus', drivers.NAMESPACE)
    cache = extension.ExtensionManager.ENTRY_POINT_CACHE
    with (
        unittest.mock.patch.object(needs, 'of_driver', lambda _: parsed),
        unittest.mock.patch.dict(cache, {drivers.NAMESPACE: [point]}),
    ):
        yield
