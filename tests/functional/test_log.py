# SPDX-License-Identifier: Apache-2.0
"""The log of a service at INFO: starts, findings, and the calls of users."""

import datetime
import io
import logging
import re

from oslo_log import formatters
from oslo_utils import timeutils
import pytest
import sqlalchemy as sa

from cyborg_lite import conf as options
from cyborg_lite import model
from cyborg_lite.conductor import healing
from cyborg_lite.driver import host as hosts
from tests import support

HOST = 'atlas-300i-duo'
OTHER = '11111111-2222-4333-8444-555555555555'
#: The expected lines in order; {arq} and so on are the values of the test.
LIFE = """
Conductor {version} starts on host
Agent {version} of host {host} starts with the drivers huawei_ascend, .*
Host {host}: driver huawei_ascend is ok, {devices} device
Host {host} is new: its first report is taken
Device {address} \\(.*\\) of host {host} is new
Host {host} is reported: a conductor took the report
{who} Create device profile profile-1: done
{who} Create the ARQs of device profile profile-1: done
{who} Bind ARQ {arq} to instance {instance} on host {host} \\(provider {rp}\\): done
{who} Bind ARQ .* and 4 more to instance .*: refused: Resource provider {rp} has . free
{who} PATCH /v2/accelerator_requests is refused with 404: Resource provider {rp} has
{who} Unbind ARQ {arq}: done
{who} Disable device {device}: done
{who} Enable device {device}: done
{who} Delete ARQ {arq}: done
{who} DELETE /v2/hosts/{host} is refused with 409: Host {host} is up
Host {host} is down: it last reported at
Host {host} is up again
"""


@pytest.fixture
def log():
    """The log from now on, in the format of oslo.log's files."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    conf = options.load(files=[])
    handler.setFormatter(formatters.ContextFormatter(config=conf))
    ours = logging.getLogger('cyborg_lite')
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    yield stream
    ours.removeHandler(handler)
    ours.setLevel(level)


def test_one_life(log, database_url, tmp_path):
    service = support.Service(database_url, [hosts.find(HOST, tmp_path)])
    try:
        [agent] = service.embedded.agents
        assert agent.manager.reported.wait(60)
        facts = live(service)
        agent.manager.report()
        silence(service)
        agent.manager.report()
    finally:
        service.stop()
    text = log.getvalue()
    at = 0
    for line in LIFE.strip().format(**facts, version=re.escape(options.VERSION)).splitlines():
        found = re.compile(line).search(text, at)
        assert found, f'{line} is not in {text[at:]}'
        at = found.end()
    assert not re.search('Traceback|secret', text)


def live(service):
    """The calls of a user and an operator; returns the values for LIFE."""
    [part, *_] = service.rows(model.Deployable)
    device = service.rows(model.Device)[0]
    service.profile(CUSTOM_NPU=1)
    [arq] = service.arqs()
    place = {'provider': part.rp_uuid, 'host': HOST}
    answer = service.api.bind(arq, instance=support.INSTANCE, **place)
    assert answer.status_int == 202, answer
    service.profile('twelve', CUSTOM_NPU=12)
    refused = service.api.bind(*service.arqs('twelve'), instance=OTHER, **place)
    assert refused.status_int == 404
    service.api.unbind(arq)
    for order in ('disable', 'enable'):
        service.api.post(f'/v2/devices/{device.uuid}/{order}')
    service.api.delete(f'/v2/accelerator_requests/{arq}')
    assert service.api.delete(f'/v2/hosts/{HOST}').status_int == 409
    return {
        'host': HOST,
        'devices': len(service.rows(model.Device)),
        'address': device.address,
        'device': device.uuid,
        'arq': arq,
        'instance': support.INSTANCE,
        'rp': part.rp_uuid,
        # The id of the request, the user and the project.
        'who': r'\[[^\]]*req-[0-9a-f-]{36} admin [^\]]*\]',
    }


def silence(service):
    """Make the host silent for too long."""
    with service.database.writer() as session:
        past = timeutils.utcnow() - datetime.timedelta(days=1)
        session.execute(sa.update(model.Host).values(seen_at=past))
    with service.database.writer() as session:
        healing.notice_silence(session)


def test_names_from_callers_stay_on_one_line(log, service):
    service.report(support.card())
    service.profile()
    [part] = service.rows(model.Deployable)
    answer = service.api.bind(*service.arqs(), provider=part.rp_uuid, host='a\nERROR forged')
    assert answer.status_int == 400
    assert [line for line in log.getvalue().splitlines() if line.startswith('ERROR')] == []
    assert 'a?ERROR forged' in log.getvalue()
