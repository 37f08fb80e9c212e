# SPDX-License-Identifier: Apache-2.0
"""A described machine with eight NPUs: neither Spark nor Ray needs a card."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from cyborg_lite import client
from tests import pages
from tests.functional import test_leases

machine, shared = test_leases.machine, test_leases.shared
#: The timeout of each step, in seconds: a JVM starts slowly on a busy machine.
BOUND = 300


@pytest.fixture
def environment(machine):
    """The environment of a user of the guide."""
    path = f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
    return os.environ | {client.VARIABLE: machine.socket, 'PATH': path}


def lines(word):
    """The blocks of the guide with a word."""
    found = pages.blocks(pages.ROOT / 'doc/source/user/spark_ray.rst')
    return [each.text for each in found if each.language == 'shell' and word in each.text]


@contextlib.contextmanager
def started(script, said, log, **more):
    """Run a script in the background until its output matches; gives the match."""
    with log.open('w') as file:
        running = subprocess.Popen(
            ['sh', '-euc', script], stdout=file, stderr=file, start_new_session=True, **more
        )
    try:
        end = time.monotonic() + BOUND
        while not (found := re.search(said, log.read_text())):
            assert running.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield found[1]
    finally:
        # Kill all children: with Ray and Spark they would end only after half a minute.
        os.killpg(running.pid, signal.SIGKILL)
        running.wait(BOUND)
