# SPDX-License-Identifier: Apache-2.0
import inspect

from oslo_db import exception as db_exception
import oslo_messaging as messaging
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import exc as orm_exception

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import manager
from tests.support import card
from tests.unit.conductor import direct

PROFILE = {'name': 'a', 'groups': [{'resources:FPGA': '1'}]}


@pytest.fixture
def eager(monkeypatch):
    """Tries follow each other at once."""
    monkeypatch.setattr('time.sleep', lambda seconds: None)


def failing(monkeypatch, *errors):
    """A method of the manager that fails so before it does its work; says how often it ran."""
    runs = []

    def function(session, ctxt, **kwargs):
        session.add(model.DeviceProfile(**PROFILE))
        session.flush()
        runs.append(kwargs)
        if len(runs) <= len(errors):
            raise errors[len(runs) - 1]
        return 'done'

    monkeypatch.setattr(manager.Manager, 'work', manager._transaction(function), raising=False)
    return runs


@pytest.mark.parametrize(
    'error', [db_exception.DBDeadlock(), db_exception.DBDuplicateEntry(),
              db_exception.DBReferenceError('t', 'c', 'k', 'k'), orm_exception.StaleDataError()],
)  # fmt: skip
def test_lost_race_is_run_again(conductor, monkeypatch, eager, error):
    runs = failing(monkeypatch, error, error)
    assert conductor.work(value=1) == 'done'
    assert runs == [{'value': 1}] * 3
    # What the first two did is undone.
    assert len(conductor.rows(model.DeviceProfile)) == 1


def test_no_connection_to_the_database_is_free(conductor, monkeypatch, eager):
    failing(monkeypatch, sa.exc.TimeoutError('QueuePool limit'))
    with pytest.raises(exception.DatabaseAway):
        conductor.work()


def test_other_errors_undo_and_are_not_tried_again(conductor, monkeypatch, eager):
    runs = failing(monkeypatch, ValueError('no'))
    with pytest.raises(ValueError):
        conductor.work()
    assert len(runs) == 1
    assert conductor.rows(model.DeviceProfile) == []


def test_errors_of_ours_are_expected_of_a_conductor(conductor):
    """oslo.messaging logs any other as a failure of the server."""
    conductor._manager.create_device_profile(direct.ADMIN, profile=PROFILE)
    with pytest.raises(messaging.ExpectedException) as expected:
        conductor._manager.create_device_profile(direct.ADMIN, profile=PROFILE)
    assert isinstance(expected.value.exc_info[1], exception.Duplicate)


def test_failed_bind_is_noted_and_told(conductor):
    conductor.report(card())
    conductor.hold()
    [arq] = conductor.arqs()
    with pytest.raises(exception.NoFreeHandle):
        conductor.take(arq)
    assert conductor.arq(arq).state == 'BindFailed'


def test_refused_bind_changes_nothing(conductor):
    """What is no failure to bind, but a mistake of the caller, moves no request."""
    conductor.report(card(handles=2))
    [held] = conductor.hold()
    [arq] = conductor.arqs()
    before = conductor.dump()
    with pytest.raises(exception.Invalid):
        conductor.take(arq, instance_uuid=conductor.arq(held).instance_uuid)
    assert conductor.dump() == before


def test_methods_that_can_be_called_over_rpc():
    """What is not marked, the bus does not serve."""
    public = {name for name, value in inspect.getmembers(manager.Manager)
              if hasattr(value, 'exposed')}  # fmt: skip
    assert public == {
        'bind', 'check_allocation', 'create_allocation', 'create_arqs', 'create_attribute',
        'create_device_profile', 'create_reservation', 'delete_arqs', 'delete_arqs_of',
        'delete_attribute', 'delete_device', 'delete_device_profile', 'delete_host',
        'delete_quota', 'explain_waiting', 'free_instance', 'probe', 'release_allocation',
        'rename_host', 'renew_allocation', 'report', 'set_device_status', 'show_limits', 'unbind',
        'update_quota',
    }  # fmt: skip
