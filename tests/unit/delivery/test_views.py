# SPDX-License-Identifier: Apache-2.0
"""The views of a document."""

from __future__ import annotations

import json

import pytest

from cyborg_lite import delivery
from tests.unit.delivery import cards

GPU = 'GPU-c2a7b9d8-0a13-5e6f-9d40-7f2b8e61c3a5'


def view(name, *accelerators):
    found = delivery.document(cards.ALLOCATION, cards.HOST, accelerators)
    before = json.dumps(found)
    shown = delivery.render(found, name)
    assert json.dumps(found) == before
    json.dumps(shown)
    return shown


def nvidia(minor: int = 0, uuid: str = GPU):
    return cards.accelerator(driver='nvidia_gpu', ids={'uuid': uuid, 'index': 7, 'minor': minor})


def test_an_unknown_view_names_the_known_ones():
    with pytest.raises(ValueError, match='process, container, spark, ray, json'):
        view('kubernetes')


def test_process_of_ascend():
    [four, six] = cards.ascend(4, 6)
    assert view('process', six, four) == {
        'env': {
            'CYBORG_ALLOCATION': cards.ALLOCATION,
            'CYBORG_DEVICES': json.dumps(
                [
                    {'id': four['uuid'], 'ordinal': 0, 'name': '4', 'type': 'AICHIP',
                     'address': '0000:95:00.0'},
                    {'id': six['uuid'], 'ordinal': 1, 'name': '6', 'type': 'AICHIP',
                     'address': '0000:93:00.0'},
                ],
                separators=(',', ':'),
            ),
            'ASCEND_RT_VISIBLE_DEVICES': '4,6',
        },
        'nodes': ['/dev/davinci4', '/dev/davinci6'],
        'shared': ['/dev/davinci_manager', '/dev/devmm_svm', '/dev/hisi_hdc'],
        'unnamed': [],
        'problems': [],
    }  # fmt: skip


def test_process_of_nvidia():
    """By UUID, and in PCI order: CUDA would number the fastest first."""
    shown = view('process', nvidia(minor=3))
    assert shown['env']['CUDA_VISIBLE_DEVICES'] == GPU
    assert shown['env']['CUDA_DEVICE_ORDER'] == 'PCI_BUS_ID'
    assert shown['nodes'] == ['/dev/nvidia3']
    assert '/dev/nvidiactl' in shown['shared']


@pytest.mark.parametrize(
    ('card', 'unnamed'),
    [
        ({'driver': 'nvidia_gpu', 'ids': {}}, True),
        ({'driver': 'nvidia_gpu', 'ids': {'minor': 3}}, True),
        ({'driver': 'nvidia_gpu', 'ids': {'uuid': GPU}}, False),
        ({'driver': 'nvidia_gpu', 'form': 'vf', 'ids': {'uuid': GPU}}, True),
        ({'driver': 'huawei_ascend', 'ids': {}}, True),
        ({'driver': 'pci', 'ids': {}}, False),
    ],
)
def test_process_says_what_its_variable_does_not_name(card, unnamed):
    found = cards.accelerator(**({'form': 'whole'} | card))
    shown = view('process', found, nvidia(minor=3))
    assert shown['unnamed'] == ([found['uuid']] if unnamed else [])


def test_process_of_amd_and_nvidia():
    amd = cards.accelerator(driver='amd_gpu', ids={'index': 2, 'render_minor': 130})
    env = view('process', amd, nvidia())['env']
    assert (env['HIP_VISIBLE_DEVICES'], env['CUDA_VISIBLE_DEVICES']) == ('2', GPU)


@pytest.mark.parametrize('facts', [{}, {'driver': 'pci'}, {'driver': 'huawei_ascend'}])
def test_process_of_an_unknown_driver_has_only_the_facts(facts):
    card = cards.accelerator(**facts)
    shown = view('process', card)
    assert {*shown['env']} == {'CYBORG_ALLOCATION', 'CYBORG_DEVICES'}
    assert json.loads(shown['env']['CYBORG_DEVICES']) == [
        {'id': card['uuid'], 'ordinal': None, 'name': None, 'type': 'AICHIP',
         'address': '0000:0a:00.0'}
    ]  # fmt: skip
    assert shown['nodes'] == []
    assert shown['problems'][0].startswith(f'Accelerator {card["uuid"]}: ')


@pytest.mark.parametrize(
    ('driver', 'file'), [('pci', 'pci.toml'), ('../a\n', 'a file'), ('a/b', 'a file')]
)
def test_the_missing_file_of_a_driver_is_named(driver, file):
    [problem] = view('process', cards.accelerator(driver=driver))['problems']
    assert f': {file} beside its driver' in problem
    assert problem.endswith(': see "How processes use the cards" in the guide for drivers.')


def test_a_model_name_stays_one_value():
    """It is in JSON, in one variable: no line of it can set another one."""
    card = cards.accelerator(type='A"\nPATH=/tmp', address='x y\x01')
    env = view('process', card)['env']
    assert env['CYBORG_DEVICES'].isprintable()
    assert json.loads(env['CYBORG_DEVICES'])[0]['type'] == card['type']


def test_container():
    """Only its own nodes, which it numbers itself: no variable names devices of the host."""
    shown = view('container', *cards.ascend(6))
    assert shown['name'] == f'cyborg-lite.local/allocation={cards.ALLOCATION}'
    assert shown['cdi']['cdiVersion'] == '0.5.0'
    assert shown['cdi']['kind'] == 'cyborg-lite.local/allocation'
    [device] = shown['cdi']['devices']
    assert device['name'] == cards.ALLOCATION
    edits = device['containerEdits']
    nodes = ['davinci6', 'davinci_manager', 'devmm_svm', 'hisi_hdc']
    assert edits['deviceNodes'] == [
        {'path': f'/dev/{node}', 'hostPath': f'/dev/{node}'} for node in nodes
    ]
    assert [each.partition('=')[0] for each in edits['env']] == [
        'CYBORG_ALLOCATION',
        'CYBORG_DEVICES',
    ]
    assert edits['mounts'][0] == {
        'hostPath': '/usr/local/dcmi',
        'containerPath': '/usr/local/dcmi',
        'options': ['ro', 'nosuid', 'nodev', 'bind'],
    }
    arguments = shown['arguments']
    assert arguments[:4] == [f'--device=/dev/{node}' for node in nodes]
    assert arguments[4] == f'--env=CYBORG_ALLOCATION={cards.ALLOCATION}'
    assert '--mount=type=bind,source=/usr/local/dcmi,target=/usr/local/dcmi,readonly' in arguments


def test_container_of_nvidia():
    """Images of NVIDIA's ask for all cards, and a runtime of NVIDIA's would add them."""
    env = view('container', nvidia())['cdi']['devices'][0]['containerEdits']['env']
    assert 'NVIDIA_VISIBLE_DEVICES=void' in env
    assert not any(each.startswith('CUDA_VISIBLE_DEVICES') for each in env)


def test_two_mig_instances_of_a_card_share_its_node():
    found = [
        cards.accelerator(
            driver='nvidia_gpu', form='mig',
            ids={'uuid': f'MIG-{n}', 'minor': 2, 'gpu_instance_minor': 10 + n,
                 'compute_instance_minor': 20 + n},
        )
        for n in range(2)
    ]  # fmt: skip
    nodes = view('process', *found)['nodes']
    assert nodes.count('/dev/nvidia2') == 1
    assert len(nodes) == 5


def test_spark():
    shown = view('spark', nvidia(), *cards.ascend(6, 4))
    assert shown['resources'] == [
        {'name': 'gpu', 'addresses': [GPU]},
        {'name': 'npu', 'addresses': ['4', '6']},
    ]
    assert shown['worker_resources'][1] == {
        'id': {'componentName': 'spark.worker', 'resourceName': 'npu'},
        'addresses': ['4', '6'],
    }


def test_spark_of_cards_without_names():
    """An address may be any text: it is the accelerator's own id."""
    card = cards.accelerator(driver='fake', form='part')
    assert view('spark', card)['resources'] == [{'name': 'fpga', 'addresses': [card['uuid']]}]


def test_ray_of_ascend():
    shown = view('ray', *cards.ascend(6, 4))
    assert shown['env']['ASCEND_RT_VISIBLE_DEVICES'] == '4,6'
    assert shown['env']['RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO'] == '1'
    assert shown['arguments'] == ['--num-gpus=0', '--resources={"NPU":2}']


def test_ray_of_gpus():
    """Ray refuses GPU in --resources."""
    amd = cards.accelerator(driver='amd_gpu', ids={'index': 2, 'render_minor': 130})
    assert view('ray', amd)['arguments'] == ['--num-gpus=1', '--resources={}']


def test_ray_gets_zero_of_the_kinds_that_it_would_detect():
    """Otherwise it would count the nodes of the whole host."""
    assert view('ray')['arguments'] == ['--num-gpus=0', '--resources={}']


def test_json_is_the_document():
    found = delivery.document(cards.ALLOCATION, cards.HOST, cards.ascend(1))
    assert delivery.render(found, 'json') == found
