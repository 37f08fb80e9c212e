# SPDX-License-Identifier: Apache-2.0
"""The ``openstack accelerator`` commands of the guides, run in order against the service."""

import types

import pytest

from cyborg_lite import model
from tests import pages
from tests import support
from tests.functional import test_host_commands
from tests.functional import test_sdk
from tests.unit import test_pages

sdk, plugins = test_sdk.sdk, test_pages.plugins
DOC = pages.ROOT / 'doc/source'
#: Commands of other services.
ELSEWHERE = {'flavor', 'server', 'complete', 'resource', 'user', 'role', 'service', 'endpoint'}


@pytest.fixture
def url(service):
    """NPUs on the host of the guides, and on a host that is down."""
    npu = {'type': 'AICHIP', 'vendor': '19e5', 'resource_class': 'CUSTOM_NPU',
           'traits': ['CUSTOM_NPU_910B']}  # fmt: skip
    service.report(support.card('5e', **npu), host='OLD')
    test_host_commands.silence(service)
    # Enough for all commands of a guide: one of them waits for an accelerator.
    cards = [support.card(bus, **npu) for bus in ('3b', '5e', '86', 'af')]
    service.report(*cards, host='compute-1')
    with test_sdk.served(service.embedded.application) as url:
        yield url


@pytest.fixture
def openstack(sdk, plugins):
    """Run a command through its plugin."""
    client = types.SimpleNamespace(accelerator=sdk, sdk_connection=types.SimpleNamespace(
        accelerator=sdk))  # fmt: skip

    def run(words):
        name = next(n for n in range(len(words), 0, -1) if tuple(words[:n]) in plugins)
        kind = plugins[tuple(words[:name])].load()
        command = kind(types.SimpleNamespace(client_manager=client), None)
        shown = command.take_action(command.get_parser('openstack').parse_args(words[name:]))
        # A list calls the API when it is read.
        return [*shown[1]] if shown else None

    return run


def words_of(page):
    for block in pages.blocks(page):
        for words in block.commands:
            words = words[1:] if words[0] == '$' else words
            if words[0] == 'openstack':
                while words[1].startswith('--os-'):
                    words = [words[0], *words[3:]]
                yield words[1:]


@pytest.mark.parametrize(
    'page',
    [
        'start/engineer.rst',
        'start/operator.rst',
        'start/automation.rst',
        'user/index.rst',
        'user/allocations.rst',
        'install/openstack.rst',
        'install/alone.rst',
        'admin/outages.rst',
    ],
)
def test_the_commands_of_a_guide_work(service, openstack, page):
    service.profile('asked', CUSTOM_NPU=1)
    [request] = service.arqs('asked')
    if '--profile npu' in (DOC / page).read_text():
        service.profile('npu', CUSTOM_NPU=1)
    found = service.api.get('/v2/accelerators?free=true&host=compute-1').json['accelerators']
    names = {
        'ACCELERATOR': found[0]['uuid'],
        'DEVICE': found[0]['device_uuid'],
        'HOST': 'OLD',
        'PGPU=1': 'CUSTOM_NPU=1',
        'REQUEST': request,
        'ARQ': request,
    }
    run = 0
    for words in words_of(DOC / page):
        if words[0] in ELSEWHERE or words[1] == 'instance':
            continue  # the latter calls Nova
        if words[1] == 'unbind':
            # The request that the previous command bound.
            names['REQUEST'] = next(
                arq.uuid for arq in service.rows(model.ARQ) if arq.state == 'Bound'
            )
        openstack([names.get(word, word) for word in words])
        run += 1
    assert run
