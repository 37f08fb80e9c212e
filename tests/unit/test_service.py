# SPDX-License-Identifier: Apache-2.0
import socket

import pytest

from cyborg_lite import conf as options
from cyborg_lite import context
from cyborg_lite import driver
from cyborg_lite import model
from cyborg_lite import service
from cyborg_lite.db import query
from tests import support


@pytest.fixture
def conf(tmp_path):
    return options.load(
        files=[],
        api__auth_strategy='noauth',
        database__connection=service.database_url(tmp_path),
        agent__enabled_drivers=['fake'],
    )


def test_embedded_with_agents(conf, tmp_path):
    """Hosts report by themselves, each as itself, and at once when they are asked."""
    hosts = [driver.Host(name, tmp_path / name) for name in ('host-1', 'host-2')]
    embedded = service.Embedded(conf, hosts)
    embedded.start()
    for agent in embedded.agents:
        assert agent.manager.reported.wait(20)
    with embedded.database.reader() as session:
        found = {d.hostname: d.type for d in query.find(session, model.Device)}
    assert found == {'host-1': 'FPGA', 'host-2': 'FPGA'}
    told = embedded.bus.agent(context.service(), 'host-2').report()
    assert told == {'fake': {'state': 'ok', 'reason': '', 'devices': 1}}
    embedded.stop()


def test_two_in_one_process_do_not_hear_each_other(tmp_path):
    """The transport in memory is one for the process."""
    (tmp_path / 'a').mkdir()
    (tmp_path / 'b').mkdir()
    one, other = support.Service(tmp_path / 'a'), support.Service(tmp_path / 'b')
    one.report(*[support.card(f'{number}a') for number in range(4)])
    assert (len(one.rows(model.Device)), len(other.rows(model.Device))) == (4, 0)
    one.stop()
    other.stop()


def test_embedded_that_never_began_can_be_stopped(conf, tmp_path):
    """Ctrl-C may come at any moment: ``cyborg-lite up`` stops whatever there is."""
    service.Embedded(conf, [driver.Host('host-1', tmp_path)]).stop()


def test_listen_on_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        with pytest.raises(OSError, match=r'in use'):
            service.listen(lambda environ, start: [], '127.0.0.1', taken.getsockname()[1])


def test_listen_takes_a_port_and_serves_later():
    server = service.listen(lambda environ, start: [], '127.0.0.1', 0)
    assert server.bind_addr[1] > 0
    server.stop()


def test_version_is_known():
    assert service.VERSION
    report = service._Version()
    assert report.version_string_with_package() == service.VERSION
    assert report.product_string() == report.vendor_string() == 'cyborg_lite'
