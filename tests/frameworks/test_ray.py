# SPDX-License-Identifier: Apache-2.0
"""Real Ray, started as in the guide: each actor has devices of its own."""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest

from cyborg_lite import client
from cyborg_lite import delivery
from tests.frameworks import conftest

JOB = pathlib.Path(__file__).with_name('ray_job.py')
#: A local Ray on free ports, for the time of the test.
OPTIONS = (
    '--head --block --port 0 --num-cpus 1 --node-ip-address 127.0.0.1 --include-dashboard false '
    '--disable-usage-stats'
)


@pytest.fixture
def place():
    """A directory for Ray: the paths of its sockets have to be short."""
    made = pathlib.Path(tempfile.mkdtemp(prefix='ray-'))
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize('block', conftest.lines('ray start'), ids=['run', 'alloc'])
def test_actors_have_different_devices(machine, environment, place, tmp_path, block):
    assert 'ray start --head' in block
    script = block.replace('ray start --head', f'ray start {OPTIONS} --temp-dir {place}')
    starting = conftest.started(script, "--address='(.*?)'", tmp_path / 'log', env=environment)
    with starting as address:
        [lease] = client.ask(machine.socket, {'do': 'list'})['leases']
        document = delivery.document(lease['uuid'], lease['host'], lease['accelerators'])
        [npus] = delivery.render(document, 'spark')['resources']
        subprocess.run(
            [sys.executable, JOB, address, tmp_path / 'answer'], check=True, timeout=conftest.BOUND
        )
    found = json.loads((tmp_path / 'answer').read_text())
    [first], [second] = found['actors']
    assert {first, second} == {*npus['addresses']}
    # A task without devices sees none, and the third actor gets the devices of the first.
    assert found['task'] == ['']
    assert (found['early'], found['late']) == (False, [first])
    machine.until(lambda: not machine.held())
