# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs as mediated devices of the type that the operator chose."""

from __future__ import annotations

import os
import pathlib
import re

import hypothesis
from hypothesis import strategies as st
from oslo_config import cfg
import pytest

from cyborg_lite import conf as options
from cyborg_lite import driver
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import recording
from cyborg_lite.driver import sysfs
from cyborg_lite.driver import testing
from cyborg_lite.drivers import nvidia_gpu
from cyborg_lite.drivers.tools import mdev
from tests.unit.drivers import captures

CARD = '0000:3b:00.0'
TYPE = 'nvidia-223'
TYPES = 'mdev_supported_types'
#: The files of a Tesla T4, as in NVIDIA's guide and in the tests of Cyborg.
FILES = {
    f'{TYPES}/{TYPE}/available_instances': '8',
    f'{TYPES}/{TYPE}/name': 'GRID T4-2B',
    f'{TYPES}/nvidia-224/available_instances': '4',
    f'{TYPES}/nvidia-224/name': 'GRID T4-4Q',
}


def configured(*texts: str) -> cfg.ConfigOpts:
    return options.new(agent__vgpu_types=[*texts])


def t4(tmp_path: pathlib.Path, **files: str) -> driver.Host:
    more = {f'{TYPES}/{TYPE}/{name}': text for name, text in files.items()}
    function = captures.function(CARD, '10de:1eb8', '030200', files=FILES | more)
    return captures.host(tmp_path, [function])


def look(host: driver.Host, *texts: str) -> tuple[driver.Device, list[str]]:
    [card], notes = nvidia_gpu.NvidiaGpu(host, configured(*texts)).look()
    return card, notes


def marks(card: driver.Device) -> list[str]:
    [part] = card.deployables
    return [handle.attach_info['vgpu_mark'] for handle in part.attach_handles]


def make(function: pathlib.Path, kind: str, name: str) -> None:
    """Make a mediated device as the kernel does."""
    (function / TYPES / kind / 'devices' / name).mkdir(parents=True)


def test_a_card_is_offered_by_the_chosen_type(tmp_path):
    """The attach info is that of Cyborg 17, which Nova 34 reads."""
    card, notes = look(t4(tmp_path), f'{CARD}={TYPE}')
    [part] = card.deployables
    assert (card.unusable, notes, part.resource_class) == (None, [], 'VGPU')
    assert part.traits == ['CUSTOM_NVIDIA_1EB8', 'CUSTOM_NVIDIA_1EB8_T4_2B']
    assert part.attach_handles[7].attach_info == {
        **{'domain': '0000', 'bus': '3b', 'device': '00', 'function': '0'},
        **{'asked_type': TYPE, 'vgpu_mark': 'nvidia-223_7'},
    }
    assert {handle.attach_type for handle in part.attach_handles} == {'MDEV'}
    # No file tells how a process uses this form: delivery says that it is for guests.
    assert {handle.form for handle in part.attach_handles} == {'mdev'}
    assert len(part.attach_handles) == 8


def test_only_the_cards_that_are_named_are_split(tmp_path):
    card, notes = look(t4(tmp_path))
    assert (card.deployables[0].resource_class, notes) == ('PGPU', [])
    assert [h.attach_type for h in card.deployables[0].attach_handles] == ['PCI']


def test_a_device_that_nova_has_made_changes_nothing(tmp_path):
    host = t4(tmp_path)
    before = marks(look(host, f'{CARD}={TYPE}')[0])
    place = host.root / 'sys/bus/pci/devices' / CARD
    make(place, TYPE, '5a1f3c52-6a7e-4d0c-9f0e-0d9b1c2d3e4f')
    (place / TYPES / TYPE / 'available_instances').write_text('7')
    card, _ = look(host, f'{CARD}={TYPE}')
    assert (marks(card), card.unusable) == (before, None)


@pytest.mark.parametrize('made', [True, False])
def test_a_device_that_comes_or_goes_while_it_is_counted_changes_nothing(
    tmp_path, monkeypatch, made
):
    """Nova makes and removes them just when guests come and go."""
    host = t4(tmp_path, available_instances='8' if made else '7')
    place = host.root / 'sys/bus/pci/devices' / CARD
    device = place / TYPES / TYPE / 'devices' / 'a'
    if not made:
        make(place, TYPE, device.name)
    number = sysfs.Function.number

    def meanwhile(self, name):
        if name.endswith('available_instances') and device.exists() != made:
            (place / TYPES / TYPE / 'available_instances').write_text('7' if made else '8')
            make(place, TYPE, device.name) if made else device.rmdir()
        return number(self, name)

    monkeypatch.setattr(sysfs.Function, 'number', meanwhile)
    assert len(marks(look(host, f'{CARD}={TYPE}')[0])) == 8


def test_a_card_has_no_more_devices_than_its_type_allows(tmp_path):
    host = t4(tmp_path, description='num_heads=4, frl_config=45, max_instance=4')
    assert len(marks(look(host, f'{CARD}={TYPE}')[0])) == 4


def test_devices_of_another_type_take_room(tmp_path):
    host = t4(tmp_path, available_instances='0')
    make(host.root / 'sys/bus/pci/devices' / CARD, 'nvidia-224', '1')
    card, _ = look(host, f'{CARD}={TYPE}')
    assert marks(card) == []
    assert card.unusable == 'it has no room for a vGPU of type nvidia-223: see [agent] vgpu_types'


@pytest.mark.parametrize(
    ('text', 'count'),
    [('0', 0), ('-3', 0), ('x', 0), ('', 0), ('9' * 19, mdev.MOST), ('1' * 400, 0), ('\u0663', 0)],
)
def test_a_hostile_number_of_instances(tmp_path, text, count):
    host = t4(tmp_path)
    place = host.root / 'sys/bus/pci/devices' / CARD / TYPES / TYPE / 'available_instances'
    place.write_text(text)
    assert len(marks(look(host, f'{CARD}={TYPE}')[0])) == count


@pytest.mark.parametrize('name', ['', 'GRID ', '\u96c7', 'x' * 300, 'GRID\x00T4', '---'])
def test_a_name_that_makes_no_trait_costs_the_trait(tmp_path, name):
    host = t4(tmp_path)
    (host.root / 'sys/bus/pci/devices' / CARD / TYPES / TYPE / 'name').write_text(name)
    card, _ = look(host, f'{CARD}={TYPE}')
    assert card.deployables[0].traits in (
        ['CUSTOM_NVIDIA_1EB8'],
        ['CUSTOM_NVIDIA_1EB8', 'CUSTOM_NVIDIA_1EB8_GRID'],
    )
    assert len(marks(card)) == 8


@pytest.mark.parametrize(
    'text',
    ['', '=', CARD, f'{CARD}=', f'{CARD}=../x', f'{CARD}=a/b', f'{CARD}=.', '3b=nvidia-223', '*=a'],
)
def test_an_invalid_value_is_named_and_costs_no_other(tmp_path, text):
    card, [note] = look(t4(tmp_path), text, f'{CARD}={TYPE}')
    assert note == (
        '[agent] vgpu_types[0]: expected ADDRESS=TYPE, such as 0000:3b:00.0=nvidia-223, not '
        f'{text!r}'
    )
    assert len(marks(card)) == 8


def test_two_types_for_one_card_are_refused(tmp_path):
    card, [note] = look(t4(tmp_path), f'{CARD}={TYPE}', f'{CARD}=nvidia-224')
    assert note == f'[agent] vgpu_types[1]: {CARD} has the type nvidia-223 already'
    assert len(marks(card)) == 8


def test_a_card_that_is_not_there_and_a_type_that_it_lacks(tmp_path):
    card, notes = look(t4(tmp_path), '0000:af:00.0=nvidia-223', f'{CARD}=nvidia-9')
    assert notes == ['[agent] vgpu_types: there is no NVIDIA GPU at 0000:af:00.0']
    assert card.unusable == 'it has no room for a vGPU of type nvidia-9: see [agent] vgpu_types'


@hypothesis.given(st.lists(st.text(max_size=40) | st.just(f'{CARD}={TYPE}'), max_size=5))
def test_no_value_breaks_the_choice(texts):
    notes = []
    for address, kind in mdev.choices(texts, notes.append).items():
        assert re.fullmatch(r'[0-9a-f:]+\.[0-7]', address)
        assert '/' not in kind


#: What NVIDIA's A2 says of a type, on each of its virtual functions.
DESCRIBED = 'num_heads=4, frl_config=60, framebuffer=4096M, max_instance=4'


def a2(tmp_path: pathlib.Path, kind: str, text: str = DESCRIBED) -> driver.Host:
    """The captured A2 with three devices; which types there were is not in the capture."""
    host = captures.umockdev(tmp_path, captures.text('nvidia/a2-vgpu-sriov-mdev.trim.umockdev'))
    [card] = [f for f in host.tree.functions() if f.numvfs]
    for function in card.virtual_functions:
        for device in function.path.glob('*-*-*-*-*'):
            made = os.path.basename(os.readlink(device / 'mdev_type'))
            make(function.path, made, device.name)
        place = function.path / TYPES / kind
        place.mkdir(parents=True, exist_ok=True)
        (place / 'available_instances').write_text(str(int(not (place / 'devices').is_dir())))
        (place / 'description').write_text(text)
        (place / 'name').write_text('NVIDIA A2-4Q')
    return host


A2 = '0000:08:00.0'


@pytest.mark.parametrize('kind', ['nvidia-754', 'nvidia-746', 'nvidia-751'])
def test_virtual_functions_have_the_devices_of_an_a2(tmp_path, kind):
    """Each tells of room for one, and the card has four: the one that there is, and the next."""
    host = a2(tmp_path, kind)
    [there] = [place.parents[3].name for place in host.root.rglob(f'{kind}/devices/*')]
    card, notes = look(host, f'{A2}={kind}')
    [part] = card.deployables
    ends = [(h.attach_info['device'], h.attach_info['function']) for h in part.attach_handles]
    assert (len({*ends}), card.unusable, notes) == (4, None, [])
    assert tuple(there.split(':')[2].split('.')) in ends
    assert part.traits == ['CUSTOM_NVIDIA_25B6', 'CUSTOM_NVIDIA_25B6_A2_4Q']


@pytest.mark.parametrize('text', ['', 'max_instance=', 'max_instance=x', 'xmax_instance=4', '\xff'])
def test_without_a_limit_each_virtual_function_has_one(tmp_path, text):
    card, _ = look(a2(tmp_path, 'nvidia-1', text), f'{A2}=nvidia-1')
    assert len(card.deployables[0].attach_handles) == 16


def test_a_recording_has_the_mediated_devices(tmp_path):
    host = t4(tmp_path / 'here')
    make(host.root / 'sys/bus/pci/devices' / CARD, TYPE, '5a1f3c52-6a7e-4d0c-9f0e-0d9b1c2d3e4f')
    before, _ = look(host, f'{CARD}={TYPE}')
    recording.record(host, tmp_path / 'r.tar.gz')
    after, _ = look(hosts.find(str(tmp_path / 'r.tar.gz'), tmp_path), f'{CARD}={TYPE}')
    assert marks(after) == marks(before)
    assert len(marks(after)) == 9


class TestContract(testing.Contract):
    """A Tesla T4 that is split so."""

    drivers = [nvidia_gpu.NvidiaGpu]
    hosts = ['../../../fixtures/vgpu-t4.yaml']
    conf = configured(f'{CARD}={TYPE}')
