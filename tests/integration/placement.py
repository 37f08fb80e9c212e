# SPDX-License-Identifier: Apache-2.0
"""The real Placement service, with a database of its own."""

from __future__ import annotations

import collections.abc
import contextlib
import pathlib

from tests.integration import cloud as cloud_
from tests.integration import process

#: One thread: SQLite allows one writer at a time.
SERVE = """
from cheroot import wsgi
from placement.wsgi.api import application
app = wsgi.PathInfoDispatcher({'/placement': application})
server = wsgi.Server(('127.0.0.1', 0), app, numthreads=1)
server.prepare()
print(f'Listening at http://127.0.0.1:{server.bind_addr[1]}', flush=True)
server.serve()
"""


@contextlib.contextmanager
def placement(place: pathlib.Path, cloud: cloud_.Cloud) -> collections.abc.Iterator[str]:
    """Placement, in the catalogue of this cloud."""
    place.mkdir()
    (place / 'placement.conf').write_text(
        '[placement_database]\n'
        f'connection = sqlite:///{place}/placement.sqlite\n'
        'sync_on_startup = true\n'
        '[api]\nauth_strategy = keystone\n' + cloud.section('keystone_authtoken')
    )
    server = process.serving(
        *('python', '-c', SERVE),
        ready=r'Listening at (http://127.0.0.1:\d+)',
        log=place / 'placement.log',
        OS_PLACEMENT_CONFIG_DIR=str(place),
    )
    with server as running:
        url = f'{running.ready[1]}/placement'
        cloud.register('placement', url)
        yield url
