# SPDX-License-Identifier: Apache-2.0
"""Messages on real pseudo-terminals, of processes of two users."""

import contextlib
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import tty

import oslo_messaging as messaging
import pytest

from cyborg_lite.agent import leases
from cyborg_lite.agent import processes
from cyborg_lite.agent import terminals
from tests import support

CARD, OTHER = '0000:3b:00.0', '0000:5e:00.0'
JANE, BOB = 4201, 4202
#: A process that has a terminal of its own, which belongs to a user, and says where it is.
SHELL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.setgroups([]), os.setgid({uid}), os.setuid({uid})
print('ready', flush=True)
{then}
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason='it needs two users')


class Terminal:
    """A terminal of a user, and a process at it."""

    def __init__(self, owner, uid, then=''):
        self.screen, self.end = pty.openpty()
        # What is written is read as it is.
        tty.setraw(self.end)
        self.name = os.ttyname(self.end)
        os.chown(self.end, owner, -1)
        argv = [sys.executable, '-S', '-c', SHELL.format(uid=uid, then=then)]
        self.process = subprocess.Popen(argv, stdin=self.end, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b'ready\n'

    def read(self, timeout=10):
        """The next line that comes in time, with the empty one before it."""
        found = b''
        while not found.strip() or not found.endswith(b'\n'):
            if not support.ready(self.screen, timeout):
                break
            found += os.read(self.screen, 1)
        return found.decode()

    @property
    def found(self):
        return processes.find(self.process.pid)

    def use(self):
        return processes.Use(self.found, frozenset({'/dev/npu0'}), None, None)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        for descriptor in (self.screen, self.end):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def terminal():
    made = []

    def make(owner=BOB, uid=BOB, **more):
        made.append(Terminal(owner, uid, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


def tell(terminal, text='hello'):
    process = terminal.found
    return terminals.tell(process, processes.terminal(process), text)


def test_a_user_is_told_on_the_terminal_of_the_process(terminal):
    bob = terminal()
    assert processes.terminal(bob.found) == os.stat(bob.name).st_rdev
    assert tell(bob)
    assert bob.read() == '\r\nhello\r\n'


def test_nothing_that_a_terminal_would_obey_is_written(terminal):
    bob = terminal()
    assert tell(bob, 'a\x1b]0;x\x07b\nc\u202e')
    assert bob.read() == '\r\na?]0;x?b?c?\r\n'


def test_a_message_that_is_written_in_part_is_not_told(terminal, monkeypatch):
    """A terminal may have room for less."""
    bob, write = terminal(), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, 'write', lambda descriptor, line: write(descriptor, line[:-2]))
        assert not tell(bob)
    assert tell(bob)


def test_a_message_is_short(terminal):
    bob = terminal()
    assert tell(bob, 'x' * 5000)
    assert len(bob.read()) < 500


def test_the_terminal_of_another_user_is_left_alone(terminal):
    """As of a process that has changed its user."""
    mixed = terminal(owner=JANE, uid=BOB)
    assert not tell(mixed)
    assert mixed.read(0) == ''


def test_a_terminal_that_takes_nothing_is_not_waited_for(terminal):
    bob = terminal()
    filler = os.open(bob.name, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    # The kernel moves what was written on: there may be room again shortly after.
    while support.ready(filler, 0.5, select.POLLOUT):
        with contextlib.suppress(BlockingIOError):
            os.write(filler, b'x' * 4096)
    # A terminal with little room is not writable by poll(), and takes a short line.
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(filler, b'x')
    os.close(filler)
    assert not tell(bob)


def test_the_terminals_of_another_file_system_are_others(terminal, monkeypatch):
    """As in a container: there a terminal of the same number is another one."""
    bob = terminal()
    seen = []

    def has_mount(process, place, kind, device):
        seen.append((process, place, kind))
        return False

    monkeypatch.setattr(processes, 'has_mount', has_mount)
    assert not tell(bob)
    assert seen == [(bob.found, '/dev/pts', 'devpts')]
    assert bob.read(0) == ''


def test_mounts_of_a_process():
    me = processes.find(os.getpid())
    device = os.stat('/dev/pts').st_dev
    assert processes.has_mount(me, '/dev/pts', 'devpts', device)
    for wrong in (('/dev', 'devpts', device), ('/dev/pts', 'tmpfs', device)):
        assert not processes.has_mount(me, *wrong)
    assert not processes.has_mount(me, '/dev/pts', 'devpts', device + 1)


@pytest.mark.parametrize('kind', ['link', 'file', 'pipe'])
def test_what_is_no_terminal_is_not_written_to(terminal, monkeypatch, tmp_path, kind):
    """Whatever lies at its name: not even a directory that a user has made is trusted."""
    bob = terminal()
    process, device = bob.found, processes.terminal(bob.found)
    target, name = tmp_path / 'target', tmp_path / os.path.basename(bob.name)
    target.touch()
    os.chown(target, BOB, -1)
    if kind == 'link':
        name.symlink_to(bob.name)
    elif kind == 'pipe':
        os.mkfifo(name)
    else:
        os.link(target, name)
    monkeypatch.setattr(terminals, 'PLACE', str(tmp_path))
    monkeypatch.setattr(processes, 'has_mount', lambda *_: True)
    assert not terminals.tell(process, device, 'hello')
    assert target.read_bytes() == b''
    assert bob.read(0) == ''


@pytest.mark.parametrize('device', [0, os.makedev(1, 3), os.makedev(4, 1), os.makedev(5, 0)])
def test_only_pseudo_terminals_are_written_to(terminal, device):
    assert not terminals.tell(terminal().found, device, 'hello')


def test_a_terminal_that_is_given_to_another_process_is_left_alone(terminal, monkeypatch):
    """Between the look and the write."""
    bob = terminal()
    process, device = bob.found, processes.terminal(bob.found)
    monkeypatch.setattr(processes, 'terminal', lambda _: device + 1)
    assert not terminals.tell(process, device, 'hello')
    assert bob.read(0) == ''


def test_a_process_that_has_ended_is_not_told(terminal):
    bob = terminal()
    process, device = bob.found, processes.terminal(bob.found)
    bob.process.kill()
    bob.process.wait()
    assert not terminals.tell(process, device, 'hello')
    with pytest.raises(processes.Gone):
        processes.terminal(process)


def look(notices, rogues, *held):
    """A look while somebody holds these cards without a lease."""
    notices.look(rogues, lambda _: {*held})


def test_each_is_told_once_at_the_second_look(terminal):
    bob, jane = terminal(), terminal(JANE, JANE)
    notices = terminals.Notices()
    rogues = {CARD: [bob.use(), jane.use()]}
    look(notices, rogues)
    assert (bob.read(0), jane.read(0)) == ('', '')
    look(notices, rogues)
    for each in (bob, jane):
        said = each.read()
        assert f'cyborg-lite: process {each.process.pid} (python' in said
        assert f'uses {CARD} without a lease' in said
        assert 'start it with "cyborg-lite run"' in said
    # Nor if it lets go of the device meanwhile.
    for found in (rogues, {}, rogues, rogues):
        look(notices, found)
    assert (bob.read(0), jane.read(0)) == ('', '')


def test_what_has_gone_at_the_second_look_is_told_nothing(terminal):
    bob = terminal()
    notices = terminals.Notices()
    for found in ({CARD: [bob.use()]}, {}, {CARD: [bob.use()]}):
        look(notices, found)
    assert bob.read(0) == ''


def test_a_user_of_what_the_api_has_allocated_is_told_once_it_is_freed(terminal):
    """It may be the holder: of such cards only conductors know that they are held."""
    bob = terminal()
    notices = terminals.Notices()
    for _ in range(3):
        look(notices, {CARD: [bob.use()]}, CARD)
    assert bob.read(0) == ''
    look(notices, {CARD: [bob.use()]}, OTHER)
    assert f'uses {CARD} without a lease' in bob.read()


def test_a_user_is_told_of_the_cards_that_nobody_holds(terminal):
    bob = terminal()
    notices = terminals.Notices()
    for _ in range(2):
        look(notices, {CARD: [bob.use()], OTHER: [bob.use()]}, CARD)
    assert f'uses {OTHER} without a lease' in bob.read()


def test_without_an_answer_nobody_is_told_before_the_next_look(terminal):
    bob = terminal()
    notices = terminals.Notices()

    def fail(_):
        raise messaging.MessagingTimeout('no answer')

    look(notices, {CARD: [bob.use()]})
    with pytest.raises(messaging.MessagingTimeout):
        notices.look({CARD: [bob.use()]}, fail)
    assert bob.read(0) == ''
    look(notices, {CARD: [bob.use()]})
    assert f'uses {CARD} without a lease' in bob.read()


def test_conductors_are_asked_only_if_somebody_is_to_be_told(terminal):
    bob, asked = terminal(), []
    notices = terminals.Notices()
    for _ in range(3):
        notices.look({CARD: [bob.use()]}, lambda timeout: asked.append(timeout) or set())
    assert asked == [terminals.TIMEOUT]


def test_processes_of_one_terminal_are_told_together(terminal):
    # Both write, each a line at once.
    bob = terminal(then="os.write(1, b'%d\\n' % os.fork())")
    child = max(int(bob.process.stdout.readline()) for _ in range(2))
    uses = [processes.Use(processes.find(child), frozenset(), None, None), bob.use()]
    notices = terminals.Notices()
    try:
        for _ in range(2):
            look(notices, {CARD: uses, OTHER: [bob.use()], '0000:7a:00.0': uses[:1]})
        said = bob.read()
    finally:
        os.kill(child, signal.SIGKILL)
    assert f'process {bob.process.pid} (python' in said
    assert f' and 1 more uses {CARD}, {OTHER} and 1 more without' in said
    assert bob.read(0) == ''


def idle(process, *watched, name='notebook', said='It has done no work since 09:00.'):
    row = {'name': name, 'idleness': said}
    return leases.Lease('uuid-1', process, row, dict(enumerate(watched)))


def test_the_user_of_an_idle_lease_is_told_where_a_process_of_it_has_a_terminal(terminal):
    """The one that it was made for may have ended, or have none."""
    gone, bob = terminal(), terminal()
    process = gone.found
    gone.close()
    reminders = terminals.Reminders()
    for _ in range(2):
        reminders.look([idle(process, bob.found)])
    said = bob.read()
    assert f'lease notebook of process {bob.process.pid} (python' in said
    assert bob.read(0) == ''
    # If more is said, or it was busy meanwhile.
    reminders.look([idle(process, bob.found, said='It is released soon.')])
    assert 'It is released soon.' in bob.read()
    for said in (None, 'It is released soon.'):
        reminders.look([idle(process, bob.found, said=said)])
    assert 'It is released soon.' in bob.read()


@pytest.mark.parametrize('name', [None, '', 'x' * (terminals.MOST + 1)])
def test_a_lease_without_a_short_name_has_its_uuid(terminal, name):
    bob = terminal()
    terminals.Reminders().look([idle(bob.found, name=name)])
    assert '"cyborg-lite release uuid-1".' in bob.read()


def test_a_process_without_a_terminal_is_told_nothing():
    with subprocess.Popen(
        [sys.executable, '-S', '-c', 'input()'], stdin=subprocess.PIPE, start_new_session=True
    ) as made:
        process = processes.find(made.pid)
        assert processes.terminal(process) == 0
        notices = terminals.Notices()
        for _ in range(2):
            look(notices, {CARD: [processes.Use(process, frozenset(), None, None)]})
        made.kill()


def test_terminals_are_nodes_of_their_own_file_system():
    """What the checks rest on."""
    screen, end = pty.openpty()
    try:
        found = os.stat(os.ttyname(end))
        assert stat.S_ISCHR(found.st_mode)
        assert os.major(found.st_rdev) == terminals.MAJOR
        assert os.ttyname(end) == f'{terminals.PLACE}/{os.minor(found.st_rdev)}'
    finally:
        os.close(screen)
        os.close(end)
