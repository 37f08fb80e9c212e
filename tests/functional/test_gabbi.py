# SPDX-License-Identifier: Apache-2.0
"""HTTP conversations in gabbi's YAML: one file for each resource and concern.

Each file has a service of its own, and its tests depend on the earlier ones.  Each test can be run
alone, and pytest-xdist may distribute the tests of one file: the earlier tests run first.
"""

import concurrent.futures
import contextlib
import json
import pathlib
import unittest

from gabbi import reporter
from gabbi import suitemaker
from gabbi import utils
from gabbi.handlers import base
from gabbi.handlers import core
from gabbi.handlers import jsonhandler
import pytest

from tests import support

GABBITS = pathlib.Path(__file__).with_name('gabbits')
MOUNT = '/accelerator'


class Keys(base.ResponseHandler):
    """``response_keys``: the exact keys of the objects at each path."""

    test_key_suffix = 'keys'
    test_key_value = {}  # noqa: RUF012

    def action(self, test, item, value=None):
        found = jsonhandler.JSONHandler.extract_json_path_value(test.response_data, item)
        for each in found if isinstance(found, list) else [found]:
            test.assertEqual(sorted(value), sorted(each), f'keys of {item}')


class Fault(base.ResponseHandler):
    """``response_fault``: an error body, JSON in JSON, and what is in its inner object.

    ``text`` is the message, in WSME's form (with ``faultcode``) or in that of routing.
    """

    test_key_suffix = 'fault'
    test_key_value = {}  # noqa: RUF012

    def preprocess(self, test):
        if 'errors' in test.response_data:
            # The form of our own resources.
            [said] = test.response_data['errors']
            test.assertEqual(['detail', 'request_id', 'status', 'title'], sorted(said))
            self._said = said | {'text': said['detail']}
            return
        test.assertEqual(['error_message'], list(test.response_data))
        inner = json.loads(test.response_data['error_message'])
        wsme = 'faultcode' in inner
        form = (
            ['debuginfo', 'faultcode', 'faultstring'] if wsme else ['code', 'description', 'title']
        )
        test.assertEqual(form, sorted(inner))
        self._said = inner | {'text': inner['faultstring' if wsme else 'description']}

    def action(self, test, item, value=None):
        wanted = test.replace_template(value)
        if item == 'text':
            test.assertIn(str(wanted), self._said[item])
        else:
            test.assertEqual(wanted, self._said[item])


class Cloud:
    """The service of one file, with the values of ``$ENVIRON``.

    host-1 has an FPGA that gives 16 accelerators and an NPU that gives one; host-2 has a disabled
    GPU that gives two.
    """

    def __init__(self, database_url):
        names = ['api.example.org', 'other.example.org']
        self.service = support.Service(database_url, api__allowed_hosts=names)
        numa = {'numa_node': 1, 'board': {'product_id': '0xd802'}, 'vendor_board': {'slot': 4}}
        npu = {'type': 'AICHIP', 'vendor': '19e5', 'model': 'Ascend 910B', **numa}
        gpu = {'type': 'GPU', 'vendor': '10de', 'model': 'A100'}
        self.service.report(
            support.card('3b', 16), support.card('c1', resource_class='CUSTOM_NPU', **npu)
        )
        self.service.report(
            support.card('86', 2, resource_class='PGPU', traits=[], **gpu), host='host-2'
        )
        self.environ = dict(self._names())
        self.service.api.post(f'/v2/devices/{self.environ["GPU"]}/disable')

    def _names(self):
        devices = self.service.api.get('/v2/devices').json['devices']
        parts = self.service.api.get('/v2/deployables').json['deployables']
        for name, device, part in zip(('FPGA', 'NPU', 'GPU'), devices, parts, strict=True):
            yield name, device['uuid']
            yield f'{name}_PART', part['uuid']
            yield f'{name}_RP', part['rp_uuid']
            yield f'{name}_NUMBER', str(device['id'] if 'id' in device else part['device_id'])

    def __call__(self, environ, start_response):
        """Replace the part of a web server: bytes as latin-1, and a mount point."""
        path = environ['PATH_INFO'].encode().decode('latin-1')
        mount = MOUNT if path == MOUNT or path.startswith(f'{MOUNT}/') else ''
        named = {'SCRIPT_NAME': mount, 'PATH_INFO': path.removeprefix(mount)}
        return self.service.embedded.application(environ | named, start_response)


class Suite:
    """The tests of a file, and their service, which the first test starts."""

    def __init__(self, path):
        handlers = [jsonhandler.JSONHandler, core.StringResponseHandler]
        handlers += [core.HeadersResponseHandler, core.ForbiddenHeadersResponseHandler]
        self.name = path.stem
        self.cloud = None
        self.cases = suitemaker.test_suite_from_dict(
            unittest.TestLoader(),
            self.name,
            utils.load_yaml(yaml_file=path),
            str(GABBITS),
            'api.example.org',
            80,
            None,
            lambda: lambda *args: self.cloud(*args),
            handlers=[handler() for handler in (*handlers, Keys, Fault)],
        )

    def parameters(self):
        for case in self.cases:
            yield pytest.param(self, case, id=f'{self.name}: {case.test_data["name"]}')


SUITES = [Suite(path) for path in sorted(GABBITS.glob('*.yaml'))]


@pytest.fixture(scope='module')
def started(databases):
    """Starts the service of a suite, once; all are stopped at the end."""

    def start(suite):
        if suite.cloud is None:
            suite.cloud = Cloud(urls.enter_context(databases.empty()))
        return suite.cloud

    with contextlib.ExitStack() as urls:
        yield start
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(lambda suite: suite.cloud and suite.cloud.service.stop(), SUITES))


@pytest.mark.parametrize(('suite', 'case'), [p for s in SUITES for p in s.parameters()])
def test_gabbi(suite, case, started, monkeypatch):
    for name, value in started(suite).environ.items():
        monkeypatch.setenv(name, value)
    case(reporter.PyTestResult())
