# SPDX-License-Identifier: Apache-2.0
"""``cyborg_lite.wsgi.api:application``, for uWSGI, gunicorn, mod_wsgi.

The configuration is read from the usual places, or from the file that the environment variable
``CYBORG_LITE_CONFIG_FILE`` names.
"""

from __future__ import annotations

import os
import sys

from cyborg_lite import cmd  # noqa: F401 - native threads, before anything else

# isort: split
from oslo_config import cfg
from oslo_log import log

from cyborg_lite import conf as options
from cyborg_lite import exception
from cyborg_lite import rpc
from cyborg_lite import service
from cyborg_lite import startup
from cyborg_lite.api import app
from cyborg_lite.db import engine

LOG = log.getLogger(__name__)


def _application() -> app.Wsgi:
    file = os.environ.get('CYBORG_LITE_CONFIG_FILE')
    try:
        conf = options.load(files=[file] if file else None)
        service.prepare(conf, 'cyborg-lite-api')
        startup.check(conf, startup.identity, startup.database, startup.bus)
        # Without this a worker waits for the database, and answers no request meanwhile.
        database = engine.Database(conf, wait=False)
        # It reads the files of users and policies.
        made = app.application(conf, database, rpc.Bus(conf))
    except (cfg.Error, exception.Refused) as error:
        print(f'cyborg-lite-api: {error}', file=sys.stderr)
        # With this status gunicorn exits, and does not start another worker.
        sys.exit(3)
    LOG.info('API %s starts, auth_strategy is %s', options.VERSION, conf.api.auth_strategy)
    service.spare_garbage_collection()
    return made


application = _application()
