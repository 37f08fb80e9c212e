# SPDX-License-Identifier: Apache-2.0
"""Real Spark, started as in the guide: each executor has devices of its own."""

import contextlib
import json
import pathlib
import subprocess
import sys

import pyspark
import pytest

from tests.frameworks import conftest

JOB = pathlib.Path(__file__).with_name('spark_job.py')
#: Two executors of one core, whose tasks run at the same time.
OPTIONS = (
    '--conf spark.executor.memory=512m --conf spark.executor.cores=1 --conf spark.cores.max=2 '
    '--conf spark.ui.enabled=false --conf spark.driver.host=127.0.0.1'
)
LISTING = """#!/bin/sh
echo '{"name": "npu", "addresses": ["0", "1"]}'
"""
[SUBMIT, LOCAL], [WORKER] = conftest.lines('spark-submit'), conftest.lines('--worker')


@pytest.fixture
def spark(environment, tmp_path):
    mine = {
        'SPARK_HOME': pathlib.Path(pyspark.__file__).parent,
        'SPARK_LOCAL_IP': '127.0.0.1',
        'SPARK_WORKER_DIR': tmp_path / 'work',
        'PYSPARK_PYTHON': sys.executable,
        # For a JVM that lives for seconds.
        'JAVA_TOOL_OPTIONS': '-XX:TieredStopAtLevel=1',
    }
    return environment | {name: str(value) for name, value in mine.items()}


def submitted(spark, place, block):
    """The addresses that the tasks of the job have: they run in two executors."""
    script = block.replace('spark-submit', f'spark-submit {OPTIONS}')
    script = script.replace('job.py', f'{JOB} {place}/answer')
    done = subprocess.run(
        ['sh', '-euc', script],
        env=spark, cwd=place, capture_output=True, text=True, timeout=conftest.BOUND,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-8000:]
    found = json.loads((place / 'answer').read_text())
    assert len({each['executor'] for each in found}) == 2
    assert [len(each['addresses']) for each in found] == [1, 1]
    return [each['addresses'][0] for each in found]


@pytest.mark.parametrize('lists', [False, True])
def test_executors_of_a_local_cluster(machine, spark, tmp_path, lists):
    """With a script that only lists, both have the same device, and Spark does not notice."""
    block = LOCAL
    if lists:
        (tmp_path / 'list').write_text(LISTING)
        (tmp_path / 'list').chmod(0o755)
        block = LOCAL.replace('$(command -v cyborg-lite-discover)', str(tmp_path / 'list'))
        assert block != LOCAL
    one, other = submitted(spark, tmp_path, block)
    assert (one == other) == lists
    machine.until(lambda: not machine.held())


def test_workers_of_a_cluster(machine, spark, tmp_path):
    """Two workers, each with four devices, and an executor of each."""

    def daemon(name, said, arguments, settings=''):
        command = f'spark-class org.apache.spark.deploy.{name} --host 127.0.0.1 --webui-port 0'
        log = tmp_path / f'{len([*tmp_path.iterdir()])}.log'
        script = f'{settings}\nexec {command} {arguments}'
        return conftest.started(script, said, log, env=spark, cwd=tmp_path)

    with contextlib.ExitStack() as stack:
        master = stack.enter_context(daemon('master.Master', r'at (spark://\S+)', '--port 0'))
        for _ in range(2):
            # As conf/spark-env.sh has the lines.
            settings = f'eval "$({WORKER.strip()})"'
            arguments = f'--cores 1 --memory 512m {master}'
            said = r'registered with master (\S+)'
            stack.enter_context(daemon('worker.Worker', said, arguments, settings))
        assert machine.held() == 8
        block = SUBMIT.replace('spark://HOST:7077', master)
        assert block != SUBMIT
        one, other = submitted(spark, tmp_path, block)
        assert one != other
    machine.until(lambda: not machine.held())
