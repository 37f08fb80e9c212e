# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import sqlalchemy as sa

from cyborg_lite import model
from tests.support import card

KINDS = sorted((mapper.class_ for mapper in model.Base.registry.mappers), key=lambda k: k.__name__)
#: Handles are shown as fields of the requests that hold them.
SHOWN = [kind for kind in KINDS if kind is not model.AttachHandle]
FIELDS = [(kind, field) for kind in SHOWN for field in kind.fields()]
COLUMNS = [(kind, column) for kind in KINDS for column in kind.__table__.columns]


def names(rows):
    return [f'{kind.__name__}-{thing.name}' for kind, thing in rows]


@pytest.mark.parametrize(('kind', 'field'), FIELDS, ids=names(FIELDS))
def test_field_is_documented(kind, field):
    assert field.doc
    assert field.doc.endswith('.')
    assert field.doc[0].isupper() or field.doc.startswith('``')
    assert field.version >= (2, 0)


@pytest.mark.parametrize(('kind', 'column'), COLUMNS, ids=names(COLUMNS))
def test_column_says_who_writes_it(kind, column):
    assert column.info['kind'] in ('fact', 'own', 'link')
    # What a driver reports goes over the wire as it is, but for a time: see Device.facts.
    if column.info['kind'] == 'fact':
        assert isinstance(column.type, sa.String | sa.Integer | sa.JSON | sa.Boolean | sa.DateTime)
    if column.foreign_keys:
        assert column.info['kind'] == 'link'
        # A view has the indices of its tables.
        assert column.index or not isinstance(column.table, sa.Table)


@pytest.mark.parametrize('kind', KINDS)
def test_keys_are_facts(kind):
    assert set(kind.keys) <= {column.name for column in kind.columns('fact')}
    assert all(issubclass(kind.part(name), model.Base) for name in kind.parts)


def test_facts_round_trip():
    device = card(handles=2, numa_node=1, board={'a': [1, None]}, traits=['CUSTOM_B', 'CUSTOM_A'])
    facts = device.facts()
    assert json.loads(json.dumps(facts)) == facts
    twin = model.Device.from_facts(facts)
    assert twin.facts() == facts
    assert twin.identity == device.identity
    [part] = twin.deployables
    assert (part.resource_class, part.traits) == ('FPGA', ['CUSTOM_A', 'CUSTOM_B'])
    assert [handle.attach_info['function'] for handle in part.attach_handles] == ['0', '1']


def test_facts_are_facts_only():
    """What the service writes is no agent's to say."""
    facts = card().facts()
    assert not facts.keys() & {'id', 'uuid', 'status', 'absences', 'hostname'}
    twin = model.Device.from_facts(facts | {'status': 'maintaining', 'id': 7, 'hostname': 'x'})
    assert (twin.status, twin.id, twin.hostname) == (None, None, None)


def test_unknown_facts_are_ignored():
    facts = card().facts()
    facts['colour'] = 'blue'
    facts['deployables'][0]['sockets'] = [{'a': 1}]
    assert model.Device.from_facts(facts).facts() == card().facts()


@pytest.mark.parametrize('missing', ['numa_node', 'board', 'vendor_board', 'deployables'])
def test_missing_facts_have_their_default(missing):
    facts = card().facts()
    del facts[missing]
    device = model.Device.from_facts(facts)
    assert getattr(device, missing) == ([] if missing == 'deployables' else None)


def test_identity_tells_siblings_apart():
    device = card(handles=2)
    one, other = device.deployables[0].attach_handles
    assert one.identity != other.identity
    # The same accelerator of a card that was moved is the same.
    assert card('5e').deployables[0].attach_handles[0].identity == one.identity
    # Whatever the order of the keys.
    info = dict(reversed(one.attach_info.items()))
    twin = model.AttachHandle(attach_type='PCI', attach_info=info)
    device.deployables[0].attach_handles.append(twin)
    assert (twin.identity, twin.location) == (one.identity, one.location)


@pytest.mark.parametrize(
    ('kind', 'version', 'added'),
    [
        (model.Device, (2, 3), {'status'}),
        (model.Deployable, (2, 3), set()),
        (model.ARQ, (2, 3), set()),
    ],
)
def test_fields_that_a_microversion_adds(kind, version, added):
    assert {field.name for field in kind.fields() if field.version == version} == added


@pytest.mark.parametrize(
    ('kind', 'fields'),
    [
        (
            model.Device,
            'uuid type vendor model hostname std_board_info vendor_board_info created_at '
            'updated_at',
        ),
        (
            model.Deployable,
            'uuid name parent_id root_id num_accelerators device_id attributes_list rp_uuid '
            'driver_name bitstream_id created_at updated_at',
        ),
        (model.Attribute, 'uuid deployable_id key value created_at updated_at'),
        (model.DeviceProfile, 'uuid name description groups created_at updated_at'),
        (
            model.ARQ,
            'uuid state device_profile_name device_profile_group_id hostname device_rp_uuid '
            'instance_uuid project_id attach_handle_type attach_handle_uuid attach_handle_info '
            'created_at updated_at',
        ),
    ],
)
def test_fields_are_upstreams_at_2_0(kind, fields):
    """CONTRACT.md, section 2."""
    assert {field.name for field in kind.fields() if field.version == (2, 0)} == set(fields.split())


@pytest.mark.parametrize(
    ('kind', 'nullable'),
    [
        (model.Device, {'updated_at'}),
        (model.Deployable, {'updated_at', 'bitstream_id', 'parent_id', 'root_id'}),
        (
            model.ARQ,
            {'updated_at', 'hostname', 'device_rp_uuid', 'instance_uuid', 'attach_handle_uuid'},
        ),
    ],
)
def test_fields_that_may_be_null(kind, nullable):
    assert {field.name for field in kind.fields() if field.nullable} == nullable


def test_allocation_is_a_constraint():
    """I1: two requests cannot link to one handle."""
    column = model.ARQ.__table__.c.attach_handle_id
    assert column.unique
    [key] = column.foreign_keys
    assert key.target_fullname == 'attach_handles.id'


def test_project_is_never_null():
    assert not model.ARQ.__table__.c.project_id.nullable


def test_texts_have_a_length():
    """MariaDB takes none without."""
    for table in model.Base.metadata.tables.values():
        for column in table.columns:
            assert not isinstance(column.type, sa.String) or column.type.length, column
