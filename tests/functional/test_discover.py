# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite-discover``: each JVM of Spark gets accelerators of its own."""

import json
import subprocess
import sys

import pytest

from cyborg_lite import client
from cyborg_lite.agent import nodes
from cyborg_lite.cmd import main
from tests.functional import test_leases

machine, shared, alone = test_leases.machine, test_leases.shared, test_leases.alone
SCRIPT = 'import sys; from cyborg_lite.cmd import discover; sys.exit(discover.main())'
#: It replaces a JVM: it starts a command for each line that it reads.
PARENT = """
import json, os, subprocess, sys
for line in sys.stdin:
    words = json.loads(line)
    environment = os.environ | words['environment']
    started = [
        subprocess.Popen([sys.executable, *words['argv']], env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(words['times'])
    ]
    ended = [(*each.communicate(), each.returncode) for each in started]
    print(json.dumps(ended), flush=True)
"""


class Jvm:
    """A process that calls the script like Spark."""

    def __init__(self, machine, *arguments):
        self._socket = machine.socket
        self.process = subprocess.Popen(
            [sys.executable, '-c', PARENT, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        machine.started.append(self.process)

    def start(self, *arguments, times=1, script=SCRIPT, **environment):
        argv = ['-c', script, *arguments]
        environment = {client.VARIABLE: self._socket} | environment
        words = {'argv': argv, 'environment': environment, 'times': times}
        self.process.stdin.write(json.dumps(words) + '\n')
        self.process.stdin.flush()

    def answers(self, *arguments, **more):
        """The output, the errors and the status of each call."""
        self.start(*arguments, **more)
        return json.loads(self.process.stdout.readline())

    def addresses(self, *arguments, **more):
        """The addresses of each call, which must print nothing else."""
        found = []
        for out, err, status in self.answers(*arguments, **more):
            assert (err, status) == ('', 0)
            answer = json.loads(out)
            assert (out.count('\n'), answer.keys()) == (1, {'name', 'addresses'})
            assert answer['name'] == 'npu'
            found.append(answer['addresses'])
        return found

    def fails(self, *arguments, **environment):
        [[out, err, status]] = self.answers(*arguments, **environment)
        assert (out, status, err.count('\n')) == ('', 1, 1)
        return err


def test_two_processes_get_different_ones_until_they_end(machine):
    jvms = [Jvm(machine) for _ in range(2)]
    [one], [other] = (jvm.addresses(CYBORG_LEASE='2') for jvm in jvms)
    assert len({*one, *other}) == 4
    assert machine.lease(jvms[0].process.pid)['command'] == 'python'
    jvms[0].process.kill()
    machine.until(lambda: machine.held() == 2)
    [third] = Jvm(machine).addresses(CYBORG_LEASE='2')
    assert not {*third} & {*other}


def test_a_process_gets_the_same_again(machine):
    jvm = Jvm(machine)
    machine.hold(4)
    first = jvm.addresses('-n', '2', times=3)
    assert first[0] == first[1] == first[2]
    assert jvm.addresses('-n', '2') == first[:1]
    assert machine.held() == 6
    # Another request is another lease.
    [other] = jvm.addresses('-n', '2', '--class', 'npu')
    assert not {*other} & {*first[0]}
    # Also if nothing is free.
    assert jvm.addresses('-n', '2') == first[:1]


def test_a_released_lease_is_not_found_again(machine):
    jvm = Jvm(machine)
    jvm.addresses()
    machine.ask(do='release', id=machine.lease(jvm.process.pid)['uuid'])
    assert not machine.held()
    jvm.addresses()
    assert machine.held() == 1


def test_a_process_gets_the_same_from_an_agent_that_was_started_again(alone):
    machine = alone()
    jvm = Jvm(machine)
    before = jvm.addresses(CYBORG_LEASE='3')
    machine.stop()
    machine.start()
    machine.until(machine.leases)
    assert jvm.addresses(CYBORG_LEASE='3') == before
    assert machine.held() == 3


def test_workers_in_one_process_get_different_ones(machine):
    """Spark's local-cluster mode."""
    jvm = Jvm(machine, 'org.apache.spark.deploy.SparkSubmit', '--master', 'local-cluster[2,1,512]')
    [one], [other] = jvm.addresses(), jvm.addresses()
    assert one != other
    assert machine.held() == 2


def test_the_resource_is_named_by_a_variable(machine):
    [[out, _, _]] = Jvm(machine).answers(CYBORG_RESOURCE='aichip', CYBORG_LEASE='2')
    assert json.loads(out)['name'] == 'aichip'
    assert machine.held() == 2


def test_a_profile_is_named_by_a_variable(machine):
    groups = [{'resources:CUSTOM_NPU': '3'}]
    machine.service.api.post('/v2/device_profiles', [{'name': 'three', 'groups': groups}])
    more = {'CYBORG_RESOURCE': 'npu', 'CYBORG_LEASE': '2'}
    [found] = Jvm(machine).addresses(CYBORG_PROFILE='three', **more)
    assert len(found) == 3
    # A class in the arguments comes first.
    [found] = Jvm(machine).addresses('--class', 'npu', CYBORG_PROFILE='three', **more)
    assert len(found) == 2


def test_it_waits_with_the_option(machine):
    holder = machine.hold(8)
    jvm = Jvm(machine)
    jvm.start('--wait', '30s')
    machine.until(lambda: machine.lease(jvm.process.pid, 'queued'))
    holder.kill()
    [[out, err, status]] = json.loads(jvm.process.stdout.readline())
    assert (status, len(json.loads(out)['addresses'])) == (0, 1)
    assert 'waiting at place 1' in err


@pytest.mark.parametrize(
    ('arguments', 'environment', 'said'),
    [
        ([], {'CYBORG_LEASE': '9'}, 'needs 9 of CUSTOM_NPU'),
        ([], {'CYBORG_LEASE': '0'}, "CYBORG_LEASE: expected a number from 1 to 1000, not '0'"),
        ([], {'CYBORG_RESOURCE': 'n/p'}, "CYBORG_RESOURCE: expected a name such as npu, not 'n/p'"),
        ([], {'CYBORG_RESOURCE': 'gpu'}, "No 'gpu' on host atlas-800t-a2: expected one of CUSTOM"),
        (['--profile', 'nope'], {'CYBORG_LEASE': '2'}, 'Device profile nope not found'),
        (['--host', 'elsewhere'], {}, "this agent has no host 'elsewhere'"),
        (['--socket', '/nowhere/agent.sock'], {}, 'start one with "cyborg-lite up"'),
    ],
)
def test_a_refused_request_is_an_error(machine, arguments, environment, said):
    assert said in Jvm(machine).fails(*arguments, **environment)
    assert not machine.held()


def test_a_lease_without_spark_names_is_released(machine, monkeypatch):
    monkeypatch.setattr('cyborg_lite.delivery.needs.of_driver', lambda name: None)
    [[out, err, status]] = Jvm(machine).answers()
    assert (out, status) == ('', 1)
    assert 'expected accelerators of one resource of Spark, and found: none' in err
    assert not machine.held()


def test_the_only_class_of_a_machine_is_meant(machine, monkeypatch, capsys):
    """Spark needs the name before the lease."""
    monkeypatch.setenv(client.VARIABLE, machine.socket)
    monkeypatch.setattr(sys, 'argv', ['cyborg-lite', 'spark-conf', '--script', '/s'])
    assert main.main() == 0
    assert '--conf spark.executorEnv.CYBORG_RESOURCE=npu\n' in capsys.readouterr().out
    [agent] = machine.service.embedded.agents
    found = nodes.Finding(frozenset({'huawei_ascend', 'nvidia_gpu', 'pci'}))
    monkeypatch.setattr(agent.manager, 'finding', found)
    assert main.main() == 1
    said = 'cyborg-lite: which class is meant: expected one of gpu, npu. Name it with --class\n'
    assert capsys.readouterr() == ('', said)


def test_it_loads_no_service(machine):
    """It is started for each executor: the standard library, and what is named here, load fast."""
    ours = [
        '', '.accounts', '.agent', '.agent.launching', '.agent.processes', '.agent.runtimes',
        '.client', '.cmd', '.cmd.discover', '.cmd.leasing', '.cmd.main', '.cmd.output',
        '.cmd.times', '.exception', '.unix',
    ]  # fmt: skip
    jvm = Jvm(machine)
    assert _loaded(jvm) == {f'cyborg_lite{each}' for each in ours}
    # A lease that is found again is rendered here.
    ours += ['.delivery', '.delivery.documents', '.delivery.needs', '.delivery.views']
    assert _loaded(jvm) == {f'cyborg_lite{each}' for each in ours}
    assert machine.held() == 1


def _loaded(jvm):
    """What the script loads until its end that Python does not have."""
    script = (
        'import sys; before = set(sys.modules); from cyborg_lite.cmd import discover\n'
        'status = discover.main(); print(*set(sys.modules) - before, file=sys.stderr)\n'
        'sys.exit(status)'
    )
    [[_, err, status]] = jvm.answers(script=script)
    assert status == 0
    return {each for each in err.split() if each.partition('.')[0] not in sys.stdlib_module_names}
