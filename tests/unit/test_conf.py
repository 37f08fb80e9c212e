# SPDX-License-Identifier: Apache-2.0
from oslo_config import cfg
from oslo_config import generator
import pytest

from cyborg_lite import conf as options

OPTS = [(group, opt) for group, opts in options.list_opts() for opt in opts]


@pytest.mark.parametrize(('group', 'opt'), OPTS, ids=[f'{g}-{o.name}' for g, o in OPTS])
def test_option_is_documented(group, opt):
    assert opt.help[0].isupper()
    assert opt.help.endswith('.')
    # oslo.config wraps the text itself.
    assert '\n' not in opt.help
    for description in getattr(opt.type, 'choices', None) or ():
        assert description


@pytest.mark.parametrize(('group', 'opt'), OPTS, ids=[f'{g}-{o.name}' for g, o in OPTS])
def test_default_can_be_read(group, opt):
    conf = options.load(files=[])
    assert (conf if group is None else conf[group])[opt.dest] == opt.default


def test_defaults_are_ours_alone():
    """Two services in one process each have their own."""
    one = options.load(files=[], agent__report_interval=5, host='host-7')
    assert (one.agent.report_interval, one.host) == (5, 'host-7')
    assert options.load(files=[]).agent.report_interval != 5
    assert not cfg.CONF._opts.keys() & {'host'}


def test_file_goes_before_defaults_and_arguments_before_files(tmp_path):
    (tmp_path / 'a.conf').write_text('[DEFAULT]\nhost = host-8\n[agent]\nreport_interval = 9\n')
    files = [str(tmp_path / 'a.conf')]
    conf = options.load(files=files, agent__report_interval=5, host='host-7')
    assert (conf.agent.report_interval, conf.host) == (9, 'host-8')


@pytest.mark.parametrize(
    'text',
    [
        '[agent]\nreport_interval = 0\n',
        '[agent]\nreport_interval = often\n',
        '[agent]\ndriver_timeout = -1\n',
        '[api]\nauth_strategy = none\n',
        '[api]\nmax_limit = 0\n',
        '[api]\npublic_endpoint = ftp://x\n',
        '[conductor]\nabsences = 0\n',
        '[DEFAULT]\nhost = a_b\n',
        'no section = x\n[\n',
    ],
)
def test_value_out_of_range(tmp_path, text):
    (tmp_path / 'a.conf').write_text(text)
    with pytest.raises((cfg.Error, ValueError)):
        options.load(files=[str(tmp_path / 'a.conf')])


def test_file_that_is_not_there():
    with pytest.raises(cfg.Error):
        options.load(files=['/nowhere/a.conf'])


def test_device_spec_can_be_given_many_times(tmp_path):
    spec = '{"vendor_id": "8086", "traits": ["CUSTOM_A", "CUSTOM_B"]}'
    (tmp_path / 'a.conf').write_text(f'[pci]\ndevice_spec = {spec}\ndevice_spec = {{}}\n')
    assert options.load(files=[str(tmp_path / 'a.conf')]).pci.device_spec == [spec, '{}']


def test_sample_can_be_generated(tmp_path):
    conf = cfg.ConfigOpts()
    generator.register_cli_opts(conf)
    out = tmp_path / 'sample'
    conf(['--namespace', 'cyborg_lite', '--output-file', str(out)])
    generator.generate(conf)
    for _, opt in OPTS:
        assert f'#{opt.dest} =' in out.read_text()
    # It tells nothing of the machine that it was made on.
    assert '<the host name of this machine>' in out.read_text()
