# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the used parts of Nova, Glance and Neutron."""

from __future__ import annotations

import collections.abc
import contextlib
import json
import threading
import typing
import uuid as uuidlib

from cheroot import wsgi
import webob
import webob.dec

SERVER = '0f3c9a52-5d7e-4a5c-8d3c-2f6d8a1b7c90'
IMAGE = '9a17439a-85d0-4c53-a3d3-0f68a2eac896'
#: The fields of an image; Nova treats unknown ones as its own properties.
FACTS = {
    'id': '',
    'name': 'one',
    'status': 'active',
    'container_format': 'bare',
    'disk_format': 'raw',
    'created_at': '2026-01-01T00:00:00Z',
    'updated_at': '2026-01-01T00:00:00Z',
    'min_disk': 0,
    'min_ram': 0,
    'size': 1,
    'owner': None,
    'visibility': 'public',
}
SCHEMA = {'name': 'image', 'properties': {name: {} for name in FACTS}}


class Peers:
    """A server, an image, and the events that Nova received."""

    def __init__(self) -> None:
        self.url = ''
        self._events: list[dict[str, str]] = []
        self._images = {IMAGE: FACTS | {'id': IMAGE}}
        self._told = threading.Condition()

    def events(self, instance: str, number: int, timeout: float = 30) -> list[dict[str, str]]:
        """The events of an instance, once there are so many."""

        def found() -> list[dict[str, str]]:
            return [event for event in self._events if event['server_uuid'] == instance]

        with self._told:
            self._told.wait_for(lambda: len(found()) >= number, timeout)
            return found()

    @webob.dec.wsgify
    def __call__(self, request: webob.Request) -> webob.Response:
        match request.method, request.path_info.strip('/').split('/'):
            case 'GET', ['compute', *_, 'servers', uuid] if uuid == SERVER:
                return webob.Response(json_body={'server': {'id': uuid, 'name': 'one'}})
            case 'GET', ['compute', *_, 'servers']:
                return webob.Response(json_body={'servers': []})
            case 'POST', ['compute', *_, 'os-server-external-events']:
                return self._listen(request)
            case 'GET', ['compute', 'v2.1']:
                return self._version('compute/v2.1', 'v2.1', version='2.96', min_version='2.1')
            case method, ['image', *path]:
                return self._image(method, path, request)
            case 'GET', ['network', *_, ('extensions' | 'networks' | 'ports') as kind]:
                return webob.Response(json_body={kind: []})
        return webob.Response(status=404)

    def _version(self, path: str, id: str, **more: str) -> webob.Response:
        links = [{'rel': 'self', 'href': f'{self.url}/{path}/'}]
        document = {'id': id, 'status': 'CURRENT', 'links': links} | more
        return webob.Response(json_body={'version': document})

    def _image(self, method: str, path: list[str], request: webob.Request) -> webob.Response:
        match method, path:
            case 'GET', [*_, 'images', uuid] if uuid in self._images:
                return webob.Response(json_body=self._images[uuid])
            case 'DELETE', [*_, 'images', uuid] if self._images.pop(uuid, None):
                return webob.Response(status=204)
            case 'POST', [*_, 'images']:
                image = FACTS | {'id': str(uuidlib.uuid4())} | json.loads(request.body)
                self._images[image['id']] = image
                return webob.Response(status=201, json_body=image)
            case 'GET', [*_, 'schemas', 'image']:
                return webob.Response(json_body=SCHEMA)
            case 'GET', ['v2']:
                return self._version('image/v2', 'v2.16')
        return webob.Response(status=404)

    def _listen(self, request: webob.Request) -> webob.Response:
        events = json.loads(request.body)['events']
        if not request.headers.get('X-Auth-Token'):
            return webob.Response(status=401)
        with self._told:
            self._events += events
            self._told.notify_all()
        return webob.Response(json_body={'events': [event | {'code': 200} for event in events]})


@contextlib.contextmanager
def peers(kind: type[Peers] = Peers) -> collections.abc.Iterator[typing.Any]:
    made = kind()
    server = wsgi.Server(('127.0.0.1', 0), typing.cast('typing.Any', made))
    server.prepare()
    made.url = f'http://127.0.0.1:{server.bind_addr[1]}'
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield made
    finally:
        server.stop()
        thread.join()
