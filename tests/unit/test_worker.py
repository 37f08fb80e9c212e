# SPDX-License-Identifier: Apache-2.0
import ctypes
import threading

from oslo_context import context as current
import pytest

from cyborg_lite import context
from cyborg_lite import worker


class Work:
    """Fails as it is told to, and counts how often it was done."""

    def __init__(self, *errors, wait=0.0):
        self.errors, self.wait = list(errors), wait
        self.done = threading.Semaphore(0)

    def __call__(self):
        self.done.release()
        if self.errors:
            raise self.errors.pop(0)
        return self.wait


@pytest.fixture
def run():
    """Start a worker of this work."""
    workers = []

    def start(work, delay=0.0):
        made = worker.Worker('digger', work, delay)
        workers.append(made)
        made.start()
        return made

    yield start
    for each in workers:
        each.stop()
    for each in workers:
        each.join(20)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(worker, 'PATIENCE', 0)


@pytest.mark.parametrize('error', [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_no_exception_ends_it(run, caplog, error):
    work = Work(error('out of here'), error('again'))
    run(work)
    for _ in range(4):
        assert work.done.acquire(timeout=20)
    assert caplog.text.count('The work of thread digger failed: it is started again in') == 2
    assert 'out of here' in caplog.text


def test_each_run_forgets_for_whom_the_one_before_worked(run):
    owners = []

    class Round(Work):
        def __call__(self):
            owners.append(current.get_current().project_id)
            context.RequestContext(project_id='p1')
            return super().__call__()

    work = Round()
    run(work)
    for _ in range(3):
        assert work.done.acquire(timeout=20)
    assert owners[:3] == [None] * 3


def test_no_failure_of_the_log_ends_it(run, monkeypatch):
    def fail(*_):
        raise FileNotFoundError('the log')

    monkeypatch.setattr(worker.LOG.logger, 'handle', fail)
    work = Work(ValueError('first'), ValueError('second'))
    run(work)
    for _ in range(4):
        assert work.done.acquire(timeout=20)


def test_an_exception_from_another_thread_does_not_end_it(run):
    work = Work(wait=0.01)
    made = run(work)
    assert work.done.acquire(timeout=20)
    thread = ctypes.c_ulong(made._thread.ident)
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(SystemExit)) == 1
    for _ in range(4):
        assert work.done.acquire(timeout=20)


def test_waits_grow_with_failures_and_are_bounded(monkeypatch):
    monkeypatch.setattr(worker, 'PATIENCE', 16)
    made = worker.Worker('digger', Work())
    waits = []
    for _ in range(7):
        made._fail()
        waits.append(made._wait)
    assert waits == [1, 2, 4, 8, 16, 16, 16]


def test_it_works_at_once_or_after_a_delay(run):
    at_once, later = Work(wait=3600), Work(wait=3600)
    run(at_once)
    run(later, delay=3600)
    assert at_once.done.acquire(timeout=20)
    assert not later.done.acquire(blocking=False)


def test_it_is_woken(run):
    work = Work(wait=3600)
    made = run(work)
    for _ in range(3):
        assert work.done.acquire(timeout=20)
        made.wake()


def test_it_finishes_the_work_in_progress(run):
    begun, go_on = threading.Event(), threading.Event()
    ended = []

    def work():
        begun.set()
        go_on.wait(20)
        ended.append(made.stopping)
        return 0.0

    made = run(work)
    assert begun.wait(20)
    made.stop()
    made.join(0.01)
    assert made._thread.is_alive()
    go_on.set()
    made.join(20)
    assert not made._thread.is_alive()
    assert ended == [True]


def test_one_that_never_began_can_be_stopped():
    made = worker.Worker('digger', Work())
    made.stop()
    made.join()


def test_it_keeps_no_process_alive():
    assert worker.Worker('digger', Work())._thread.daemon
