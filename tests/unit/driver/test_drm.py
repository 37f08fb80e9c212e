# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of open nodes of GPUs."""

from __future__ import annotations

import json
import pathlib

import hypothesis
from hypothesis import strategies as st
from oslo_config import cfg
import pytest

from cyborg_lite import driver
from cyborg_lite.driver import drm
from cyborg_lite.driver import recording
from cyborg_lite.drivers import intel_gpu
from tests.unit.drivers import captures

BDF = '0000:03:00.0'
#: The example of Documentation/gpu/xe/xe-drm-usage-stats.rst, without its memory.
XE = """pos:    0
flags:  0100002
mnt_id: 26
ino:    685
drm-driver:     xe
drm-client-id:  {client}
drm-pdev:       {pdev}
drm-resident-vram0:     23992 KiB
drm-cycles-rcs: {rcs}
drm-total-cycles-rcs:   {total}
drm-cycles-bcs: 0
drm-total-cycles-bcs:   {total}
drm-cycles-vcs: 0
drm-total-cycles-vcs:   {total}
drm-engine-capacity-vcs:        2
drm-cycles-ccs: {ccs}
drm-total-cycles-ccs:   {total}
drm-engine-capacity-ccs:        4
"""
#: As i915_drm_client_fdinfo() writes it.
I915 = """pos:\t0
drm-driver:\ti915
drm-client-id:\t{client}
drm-pdev:\t{pdev}
drm-engine-render:\t{render} ns
drm-engine-copy:\t{copy} ns
drm-engine-video:\t{video} ns
drm-engine-capacity-video:\t2
drm-engine-compute:\t{compute} ns
"""
SECOND = 10**9


def xe(client=3, ccs=0, rcs=28257900, total=7655183225, pdev=BDF):
    return XE.format(client=client, pdev=pdev, rcs=rcs, ccs=ccs, total=total)


def i915(client=3, compute=0, video=0, render=0, copy=0, pdev=BDF):
    work = {'render': render, 'copy': copy, 'video': video, 'compute': compute}
    return I915.format(client=client, pdev=pdev, **work)


class Machine:
    """A machine with one GPU of Intel's, and processes that have nodes open."""

    def __init__(self, place: pathlib.Path, kernel: str = 'xe', **more) -> None:
        files = {f'drm/{name}/dev': '226:0' for name in ('card1', 'renderD128')}
        card = captures.function(BDF, '8086:56c0', '038000', files=files, driver=kernel, **more)
        root = captures.host(place, [card]).root
        self.host = driver.Host('here', root, recorded=False)
        self.driver = intel_gpu.IntelGpu(self.host, cfg.ConfigOpts())
        self.opened: list[pathlib.Path] = []

    def opens(self, pid: int, text: str, node: str = '/dev/dri/renderD128') -> None:
        home = self.host.root / 'proc' / str(pid)
        for name in ('fd', 'fdinfo'):
            (home / name).mkdir(parents=True, exist_ok=True)
        number = str(len(self.opened))
        (home / 'fd' / number).symlink_to(node)
        (home / 'fdinfo' / number).write_text(text)
        self.opened += [home / 'fd' / number, home / 'fdinfo' / number]

    def look(self):
        """The GPU, as the driver finds it."""
        [card] = self.driver.discover()
        for path in self.opened:
            path.unlink()
        self.opened.clear()
        return card


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that a test sets; this process sees all others."""
    now = [0]
    monkeypatch.setattr(drm.time, 'monotonic_ns', lambda: now[0])
    monkeypatch.setattr(drm.pids, 'sees_all', lambda: True)
    return lambda seconds: now.__setitem__(0, now[0] + seconds * SECOND)


@pytest.mark.parametrize(
    ('kernel', 'text', 'counts'),
    [
        # A display server draws and copies; a program that looks for GPUs may work for a moment.
        ('xe', xe(), False),
        ('xe', xe(ccs=999_999), False),
        ('xe', xe(ccs=1_000_000), True),
        ('i915', i915(render=SECOND, copy=SECOND), False),
        ('i915', i915(compute=49_999_999), False),
        ('i915', i915(compute=50_000_000), True),
        ('i915', i915(video=SECOND), True),
        ('xe', xe(ccs=10**9, pdev='0000:04:00.0'), False),
        ('xe', xe(ccs=10**9, pdev='../../etc'), False),
        # Kernels before have other keys, or none.
        ('xe', 'pos:\t0\nflags:\t02\n', False),
    ],
)
def test_who_uses_a_gpu(tmp_path, kernel, text, counts):
    machine = Machine(tmp_path, kernel)
    machine.opens(7, text)
    machine.opens(8, 'pos:\t0\n', '/dev/null')
    assert machine.look().processes == (frozenset({7}) if counts else frozenset())


def test_a_container_may_have_the_node_by_another_name(tmp_path):
    machine = Machine(tmp_path)
    machine.opens(7, xe(ccs=10**9), '/dev/gpu')
    machine.opens(8, xe(ccs=10**9), '/home/bob/text')
    assert machine.look().processes == {7}


def test_of_a_card_of_a_guest_nothing_is_known(tmp_path, clock):
    machine = Machine(tmp_path, 'vfio-pci')
    for _ in range(2):
        machine.opens(7, xe(ccs=10**9))
        card = machine.look()
        assert (card.processes, card.utilization) == (None, None)
        clock(10)


def test_of_a_card_with_virtual_functions_nothing_is_known(tmp_path, clock):
    """The kernel of the host does not count what guests do."""
    virtual = {'id': '8086:56c0', 'total': '31', 'enabled': '4'}
    machine = Machine(tmp_path, virtual=virtual)
    for _ in range(2):
        assert [machine.look().utilization] == [None]
        clock(10)


def looks(machine, clock, *rounds):
    """The utilization in each look, 10 seconds after each other."""
    found = []
    for texts in rounds:
        for number, text in enumerate(texts):
            machine.opens(7 + number, text)
        found.append(machine.look().utilization)
        clock(10)
    return found


@pytest.mark.parametrize(
    ('before', 'after', 'load'),
    [
        ([i915()], [i915()], 0),
        ([], [], 0),
        ([i915(compute=SECOND)], [i915(compute=6 * SECOND)], 50),
        # There are two engines for video.
        ([i915()], [i915(video=5 * SECOND)], 25),
        # Any work at all is not none.
        ([i915()], [i915(compute=1)], 1),
        ([i915()], [i915(copy=SECOND)], 10),
        ([i915()], [i915(compute=99 * SECOND)], 100),
        ([i915(1), i915(2)], [i915(1, compute=2 * SECOND), i915(2, compute=SECOND)], 30),
        # One client that two processes have.
        ([i915(1), i915(1)], [i915(1, compute=SECOND), i915(1, compute=SECOND)], 10),
        ([i915(1)], [i915(1), i915(2, compute=SECOND)], 10),
        # A counter may be behind, and is not negative work.
        ([i915(compute=SECOND)], [i915(compute=1)], 0),
        # The work of a client that is gone is unknown, unless it only looked.
        ([i915(1), i915(2, render=1)], [i915(1)], None),
        ([xe(1), xe(2, rcs=0)], [xe(1, total=7655183225 + 1000)], 0),
        # Of four engines one worked for a tenth of the cycles that passed.
        ([xe()], [xe(ccs=1000, total=7655183225 + 10000)], 3),
        ([xe()], [xe()], 0),
        # A node of the card that tells nothing may hide all.
        ([i915()], [i915(), 'pos:\t0\n'], None),
        ([i915(), 'drm-driver:\ti915\n'], [i915()], None),
    ],
)
def test_utilization_between_two_looks(tmp_path, clock, before, after, load):
    machine = Machine(tmp_path, 'i915')
    assert looks(machine, clock, before, after) == [None, load]


def test_a_silent_node_of_another_card_hides_nothing(tmp_path, clock):
    machine = Machine(tmp_path)
    for _ in range(2):
        machine.opens(1, 'pos:\t0\n', '/dev/dri/card0')
        load = machine.look().utilization
        clock(10)
    assert load == 0


def test_of_too_many_clients_no_utilization_is_known(tmp_path, clock, monkeypatch):
    """The work of the others would count as none."""
    monkeypatch.setattr(drm, 'CLIENTS', 1)
    many = [i915(1), i915(2)]
    assert looks(Machine(tmp_path, 'i915'), clock, many, many) == [None, None]


def test_who_does_not_see_all_knows_no_utilization(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(drm.pids, 'sees_all', lambda: False)
    assert looks(Machine(tmp_path), clock, [xe()], [xe()]) == [None, None]


def test_a_recording_keeps_who_uses_a_gpu(tmp_path):
    machine = Machine(tmp_path)
    machine.opens(7, xe(ccs=10**9))
    assert machine.look().processes == {7}
    found = {}
    for with_serials in (True, False):
        place = tmp_path / str(with_serials)
        recording.record(machine.host, tmp_path / f'{place.name}.tar.gz', with_serials)
        place.mkdir()
        recording.unpack(tmp_path / f'{place.name}.tar.gz', place)
        copy = intel_gpu.IntelGpu(driver.Host('copy', place), cfg.ConfigOpts())
        looked = [copy.discover()[0] for _ in range(2)]
        assert [card.utilization for card in looked] == [None, None]
        found[with_serials] = looked[1].processes
    assert found == {True: {7}, False: frozenset()}


@pytest.mark.parametrize(
    'answer', [None, [], {'gpus': []}, {'gpus': {BDF: 7}}, {'gpus': {BDF: {'pids': ['7', -1]}}}]
)
def test_a_recording_may_hold_anything(tmp_path, answer):
    machine = Machine(tmp_path)
    tool = machine.host.root / 'tools/drm/clients.txt'
    tool.parent.mkdir(parents=True)
    tool.write_text(json.dumps(answer))
    copy = intel_gpu.IntelGpu(driver.Host('copy', machine.host.root), cfg.ConfigOpts())
    [card] = copy.discover()
    assert not card.processes


@hypothesis.given(st.text(alphabet='drm-engine cycles:total0123456789capacity\n\tns'))
def test_any_text_has_some_work(text):
    assert all(work.engines > 0 for work in drm.parse(text).values())
