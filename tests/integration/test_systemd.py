# SPDX-License-Identifier: Apache-2.0
"""The units pass the checks of systemd, which does not run them."""

import pathlib
import shutil
import textwrap

import pytest

from tests.integration import process

ROOT = pathlib.Path(__file__).parents[2]
UNITS = sorted((ROOT / 'etc' / 'systemd').glob('*.service'))
#: The page with the drop-in of an agent that is root, and how that begins there.
PAGE = ROOT / 'doc' / 'source' / 'admin' / 'security.rst'
SHARED = '    # /etc/systemd/system/cyborg-lite-agent.service.d/shared.conf\n'
#: How exposed each may be; 100 means not hardened at all. Vendors' tools of the agent need device
#: nodes, and the service of one shared machine needs to see and to change what others have.
THRESHOLDS = {'agent': '40', 'api': '20', 'conductor': '20', 'up': '50'}


@pytest.fixture
def analyze():
    command = shutil.which('systemd-analyze')
    assert command, 'systemd-analyze is not installed: see bindep.txt'

    def run(*arguments):
        done = process.run(command, '--no-pager', *arguments, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture(params=UNITS, ids=lambda unit: unit.stem)
def unit(request, tmp_path):
    """A unit that names the commands of this environment."""
    text = request.param.read_text()
    # The verification also checks that the commands exist.
    assert '/opt/cyborg_lite/bin/' in text
    copy = tmp_path / request.param.name
    copy.write_text(text.replace('/opt/cyborg_lite/bin/', f'{process.BIN}/'))
    return copy


def test_there_is_a_unit_for_each_service():
    assert [unit.stem for unit in UNITS] == [
        'cyborg-lite-agent',
        'cyborg-lite-api',
        'cyborg-lite-conductor',
        'cyborg-lite-up',
    ]


def test_unit_is_sound(analyze, unit):
    assert analyze('verify', '--man=no', unit) == (0, '')


@pytest.mark.parametrize('wrong', [False, True])
def test_drop_in_of_an_agent_that_is_root_is_sound(analyze, tmp_path, wrong):
    """A wrong one shows that the test can fail."""
    [agent] = [unit for unit in UNITS if 'agent' in unit.name]
    copy = tmp_path / agent.name
    copy.write_text(agent.read_text().replace('/opt/cyborg_lite/bin/', f'{process.BIN}/'))
    text = textwrap.dedent(PAGE.read_text().partition(SHARED)[2].partition('\n\n')[0])
    assert 'User=root' in text
    (tmp_path / f'{agent.name}.d').mkdir()
    drop_in = tmp_path / f'{agent.name}.d' / 'shared.conf'
    drop_in.write_text(text.replace('User=root', 'Uesr=root') if wrong else text)
    status, said = analyze('verify', '--man=no', copy)
    assert (status, said == '') == (0, not wrong)
    assert ('Uesr' in said) == wrong


def test_an_unknown_command_of_a_unit_is_found(analyze, unit):
    """This shows that the test above can fail."""
    unit.write_text(unit.read_text().replace(f'{process.BIN}/', '/nowhere/'))
    status, said = analyze('verify', '--man=no', unit)
    assert status
    assert 'is not executable' in said


def test_unit_is_hardened(analyze, unit):
    threshold = THRESHOLDS[unit.stem.rpartition('-')[2]]
    status, said = analyze('security', '--offline=true', f'--threshold={threshold}', unit)
    assert status == 0, said


def test_vendors_tools_reach_their_device_nodes():
    """Each of these options denies other device nodes: systemd.exec(5)."""
    found = [unit for unit in UNITS if unit.stem.endswith(('-agent', '-up'))]
    assert len(found) == 2
    for unit in found:
        settings = {line.partition('=')[0] for line in unit.read_text().splitlines()}
        assert not settings & {'PrivateDevices', 'ProtectClock', 'DeviceAllow', 'DevicePolicy'}
