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
    ('group', 'option', 'value', 'expected'),
    [
        ('agent', 'report_interval', '0', 'a whole number from 1 to 3600'),
        ('agent', 'report_interval', 'often', 'a whole number from 1 to 3600'),
        ('agent', 'driver_timeout', '-1', 'a whole number from 1'),
        ('agent', 'offer_console_card', 'maybe', 'true or false'),
        ('api', 'auth_strategy', 'none', 'one of keystone, http_basic, noauth'),
        ('api', 'max_limit', '0', 'a whole number from 1 to 10000'),
        ('api', 'public_endpoint', 'ftp://x', 'a URL that begins with http:// or https://'),
        ('conductor', 'absences', '0', 'a whole number from 1'),
        ('DEFAULT', 'host', 'a_b', 'a host name or address'),
    ],
)
def test_value_out_of_range(tmp_path, group, option, value, expected):
    file = tmp_path / 'a.conf'
    file.write_text(f'[{group}]\n{option} = {value}\n')
    with pytest.raises(cfg.Error) as raised:
        options.load(files=[str(file)])
    named = f'[{group}] {option}'
    assert str(raised.value) == f'{file}: {named}: expected {expected}, not {value!r}'


def test_value_of_the_environment(monkeypatch):
    monkeypatch.setenv('OS_AGENT__REPORT_INTERVAL', 'often')
    with pytest.raises(cfg.Error, match=r'REPORT_INTERVAL: \[agent\] report_interval: expected'):
        options.load(files=[])


def test_text_that_is_no_configuration(tmp_path):
    (tmp_path / 'a.conf').write_text('no section = x\n[\n')
    with pytest.raises(cfg.Error, match='a.conf:2'):
        options.load(files=[str(tmp_path / 'a.conf')])


def test_text_that_is_not_utf_8(tmp_path):
    """The value is not shown: it may be a password."""
    (tmp_path / 'a.conf').write_bytes('[database]\nconnection = geheim-ü\n'.encode('latin-1'))
    said = r"line 2 of a configuration file \('connection'\) is not UTF-8: byte 0xfc"
    with pytest.raises(cfg.Error, match=f'^{said}$'):
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
