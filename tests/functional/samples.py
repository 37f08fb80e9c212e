# SPDX-License-Identifier: Apache-2.0
"""One conversation with every request of the API; parts are the samples of the reference.

``python -m tests.functional.samples`` writes them to api-ref/samples.
"""

from __future__ import annotations

import datetime
import json
import pathlib
import random
import re
import tempfile
import typing
import uuid

import sqlalchemy as sa

from cyborg_lite import model
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import testing
from cyborg_lite.drivers import huawei_ascend
from tests import databases
from tests import support

DIRECTORY = pathlib.Path(__file__).parents[2] / 'api-ref/samples'
HOST = 'atlas-800t-a2'
UUID = re.compile(r'[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}')
TIME = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00')


class Exchange(typing.NamedTuple):
    """A request, and its answer."""

    method: str
    path: str
    body: typing.Any
    answer: typing.Any
    #: the names of the samples that these are; empty for none
    asked: str
    answered: str

    @property
    def route(self) -> str:
        return f'{self.method} {self.path}'


class Conversation:
    """The requests so far."""

    def __init__(self, api: support.Api) -> None:
        self._api = api
        self.exchanges: list[Exchange] = []

    def ask(
        self,
        method: str,
        path: str,
        *ids: str,
        query: str = '',
        body: typing.Any = None,
        asked: str = '',
        answered: str = '',
    ) -> typing.Any:
        """Make a request; returns the content of the answer."""
        url = re.sub(r'\{\w+\}', '{}', path).format(*ids) + query
        answer = self._api.request(method, url, body)
        self.exchanges.append(Exchange(method, path, body, answer, asked, answered))
        return answer.json if answer.body else None


def converse(service: support.Service, version: str) -> list[Exchange]:
    """Make every request, at a microversion."""
    with tempfile.TemporaryDirectory() as directory:
        host = hosts.find(HOST, pathlib.Path(directory))
        [npu, *_] = testing.discover(huawei_ascend.HuaweiAscend, host)
    drivers = {'huawei_ascend': {'state': 'ok', 'reason': '', 'devices': 1}}
    service.report(npu, host=HOST, drivers=drivers)
    made = Conversation(service.api.at(version))
    for path, name in ('/', 'get'), ('/v2', 'v2-get'), ('/v2/openapi.json', ''):
        made.ask('GET', path, answered=name and f'versions/{name}')
    made.ask('GET', '/v2/hosts', answered='hosts/list')
    made.ask('GET', '/v2/hosts/{name}', HOST, answered='hosts/get')
    _devices(made)
    part = _deployables(made)
    _attributes(made)
    profile = _profiles(made)
    _requests(made, part['rp_uuid'])
    _quotas(made)
    _usages(made, service)
    made.ask('DELETE', '/v2/device_profiles/{id}', profile['uuid'])
    made.ask('DELETE', '/v2/device_profiles', query='?value=none')
    _hosts(made, service)
    return made.exchanges


def _hosts(made: Conversation, service: support.Service) -> None:
    """Delete a device of a host, rename the host, and delete it."""
    card = support.card(type='PCI')
    for devices in [card], []:
        service.report(*devices, host='atlas-1')
    with service.database.writer() as session:
        row = sa.update(model.Host).where(model.Host.name == 'atlas-1')
        session.execute(row.values(silent=True))
    [device] = made.ask('GET', '/v2/devices', query='?type=PCI')['devices']
    made.ask('DELETE', '/v2/devices/{uuid}', device['uuid'])
    path = '/v2/hosts/{name}'
    made.ask('PATCH', path, 'atlas-1', body={'name': 'atlas-2'}, asked='hosts/rename')
    made.ask('DELETE', path, 'atlas-2')


def _devices(made: Conversation) -> None:
    [device] = made.ask('GET', '/v2/devices', answered='devices/list')['devices']
    made.ask('GET', '/v2/devices/{uuid}', device['uuid'], answered='devices/get')
    made.ask('GET', '/v2/devices/{uuid}/health', device['uuid'], answered='devices/health')
    for action in ('disable', 'enable'):
        made.ask('POST', f'/v2/devices/{{uuid}}/{action}', device['uuid'])


def _deployables(made: Conversation) -> typing.Any:
    path = '/v2/deployables'
    [part] = made.ask('GET', path, answered='deployables/list')['deployables']
    made.ask('GET', f'{path}/{{uuid}}', part['uuid'], answered='deployables/get')
    program = {'path': '/program', 'op': 'replace', 'value': [{'image_uuid': str(uuid.uuid4())}]}
    made.ask(
        'PATCH', f'{path}/{{uuid}}/program', part['uuid'], body=[program],
        asked='deployables/program',
    )  # fmt: skip
    made.ask('PATCH', f'{path}/{{uuid}}/program/{{again}}', part['uuid'], part['uuid'],
             body=[program])  # fmt: skip
    return part


def _attributes(made: Conversation) -> None:
    path, body = '/v2/attributes', {'deployable_id': 1, 'key': 'rack', 'value': '12'}
    # The first page, with a link to the next.
    made.ask('GET', path, query='?limit=1', answered='attributes/list')
    added = made.ask('POST', path, body=body, asked='attributes/create',
                     answered='attributes/create')  # fmt: skip
    made.ask('GET', f'{path}/{{uuid}}', added['uuid'], answered='attributes/get')
    made.ask('DELETE', f'{path}/{{uuid}}', added['uuid'])


def _profiles(made: Conversation) -> typing.Any:
    path = '/v2/device_profiles'
    groups = [{'resources:CUSTOM_NPU': '1', 'trait:CUSTOM_NPU_910B3': 'required'}]
    body = [{'name': 'npu', 'groups': groups, 'description': 'One Ascend 910B3'}]
    profile = made.ask('POST', path, body=body, asked='device_profiles/create',
                       answered='device_profiles/create')  # fmt: skip
    made.ask('GET', path, answered='device_profiles/list')
    made.ask('GET', f'{path}/{{id}}', profile['uuid'], answered='device_profiles/get')
    return profile


def _requests(made: Conversation, provider: str) -> None:
    path, name = '/v2/accelerator_requests', 'accelerator_requests'
    create = {'device_profile_name': 'npu'}
    [arq] = made.ask('POST', path, body=create, asked=f'{name}/create',
                     answered=f'{name}/create')['arqs']  # fmt: skip
    bind = support.wish(provider, HOST, str(uuid.uuid4()))
    made.ask('PATCH', path, body={arq['uuid']: bind}, asked=f'{name}/bind')
    made.ask('GET', path, answered=f'{name}/list')
    made.ask('GET', f'{path}/{{uuid}}', arq['uuid'], answered=f'{name}/get')
    made.ask('GET', f'{path}/{{uuid}}/history', arq['uuid'], answered=f'{name}/history')
    _accelerators(made)
    unbind = [{'path': each['path'], 'op': 'remove'} for each in bind]
    made.ask('PATCH', path, body={arq['uuid']: unbind}, asked=f'{name}/unbind')
    made.ask('PATCH', f'{path}/{{uuid}}', arq['uuid'], body={arq['uuid']: unbind})
    made.ask('DELETE', f'{path}/{{uuid}}', arq['uuid'])
    _allocations(made)
    made.ask('DELETE', path, query=f'?instance={uuid.uuid4()}')
    made.ask('DELETE', '/v2/instances/{uuid}', str(uuid.uuid4()))


def _quotas(made: Conversation) -> None:
    path, project = '/v2/quotas/{project_id}', 'vision'
    limits = {'limits': {'CUSTOM_NPU': 4, 'total': 8}}
    made.ask('PATCH', path, project, body=limits, asked='quotas/update', answered='quotas/update')
    made.ask('GET', path, project, answered='quotas/get')
    made.ask('GET', '/v2/quotas', answered='quotas/list')
    made.ask('DELETE', path, project)


def _usages(made: Conversation, service: support.Service) -> None:
    """Usage of a past month; the first page, with a link to the next."""
    began = datetime.datetime(2026, 6, 1)
    some = dict.fromkeys(('device_uuid', 'accelerator_uuid', 'arq_uuid'), str(uuid.uuid4()))
    with service.database.writer() as session:
        session.add_all(
            model.Usage(
                project_id=project,
                resource_class='CUSTOM_NPU',
                host=HOST,
                began_at=began,
                ended_at=began + datetime.timedelta(hours=hours),
                **some,
            )
            for project, hours in (('speech', 12), ('vision', 36))
        )
    query = '?start=2026-06-01&end=2026-07-01&limit=1'
    made.ask('GET', '/v2/usages', query=query, answered='usages/list')


def _allocations(made: Conversation) -> None:
    path, name = '/v2/allocations', 'allocations'
    made.ask('POST', '/v2/device_profiles/{id}/check', 'npu', answered='device_profiles/check')
    group = {'resources': {'CUSTOM_NPU': 1}, 'traits': {'CUSTOM_NPU_910B3': 'required'}}
    consumer = {'type': 'process', 'id': 'atlas-800t-a2:4711'}
    body = {'groups': [group], 'name': 'train-7', 'consumer': consumer, 'lease': 3600}
    body |= {'claimed_name': 'jane', 'note': 'ablation 3'}
    allocation = made.ask('POST', path, body=body, asked=f'{name}/create',
                          answered=f'{name}/create')  # fmt: skip
    made.ask('GET', path, answered=f'{name}/list')
    made.ask('GET', f'{path}/{{id}}', allocation['uuid'], answered=f'{name}/get')
    made.ask('GET', f'{path}/{{id}}/deliveries', 'train-7', query='?view=process',
             answered=f'{name}/deliveries')  # fmt: skip
    body = {'lease': 7200}
    made.ask('PATCH', f'{path}/{{id}}', 'train-7', body=body, asked=f'{name}/renew')
    made.ask('DELETE', f'{path}/{{id}}', 'train-7')


def _accelerators(made: Conversation) -> None:
    path = '/v2/accelerators'
    [held] = made.ask('GET', path, answered='accelerators/list')['accelerators']
    made.ask('GET', f'{path}/{{uuid}}', held['uuid'], answered='accelerators/get')
    made.ask('GET', f'{path}/summary', answered='accelerators/summary')


def texts(exchanges: list[Exchange]) -> dict[str, str]:
    """The samples by file name, with constant uuids, times and URL."""
    found = {}
    for each in exchanges:
        if each.asked:
            found[f'{each.asked}-req.json'] = each.body
        if each.answered:
            found[f'{each.answered}-resp.json'] = each.answer.json
    whole = json.dumps(found)
    for old, new in _stand_ins(whole).items():
        whole = whole.replace(old, new)
    return {
        name: json.dumps(content, indent=4) + '\n' for name, content in json.loads(whole).items()
    }


def _stand_ins(text: str) -> dict[str, str]:
    chance = random.Random(910)
    uuids = {
        old: str(uuid.UUID(int=chance.getrandbits(128), version=4))
        for old in dict.fromkeys(UUID.findall(text))
    }
    # Times of midnight are from the request.
    found = (each for each in TIME.findall(text) if 'T00:00:00' not in each)
    times = dict.fromkeys(found, '2026-11-21T09:30:00+00:00')
    return uuids | times | {'http://localhost': 'http://127.0.0.1:6666'}


def main() -> None:
    with databases.Files().new() as url:
        service = support.Service(url)
        try:
            made = texts(converse(service, '2.3'))
        finally:
            service.stop()
    for name, text in made.items():
        (DIRECTORY / name).write_text(text)


if __name__ == '__main__':
    main()
