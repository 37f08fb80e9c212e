# SPDX-License-Identifier: Apache-2.0
import pytest

from cyborg_lite import conf as options
from cyborg_lite import context
from cyborg_lite import policy


def test_context_without_an_enforcer_allows_nothing():
    with pytest.raises(RuntimeError, match='without an enforcer'):
        context.service().can('cyborg:arq:get_all')


@pytest.mark.parametrize(
    ('values', 'scope'),
    [
        ({'project_id': 'p1'}, 'p1'),
        ({'project_id': 'p1', 'is_admin': True}, None),
        # No project is not every project.
        ({}, ''),
    ],
)
def test_scope(values, scope):
    assert context.RequestContext(**values, overwrite=False).scope == scope


def test_target_is_the_own_project_by_default():
    enforcer = policy.enforcer(options.load(files=[]))
    caller = context.RequestContext(enforcer, roles=['reader'], project_id='p1', overwrite=False)
    assert caller.allows('cyborg:arq:get_all')
    assert not caller.allows('cyborg:arq:get_all', {'project_id': 'p2'})
    assert not caller.allows('cyborg:arq:get_all', {})


def test_service_acts_for_itself():
    made = context.service()
    assert made.is_admin
    assert made.scope is None


def test_unknown_rule_is_an_error():
    """A rule that is misspelt must not let anybody through."""
    enforcer = policy.enforcer(options.load(files=[]))
    caller = context.RequestContext(enforcer, roles=['admin'], project_id='p1', overwrite=False)
    with pytest.raises(Exception, match='cyborg:nothing'):
        caller.allows('cyborg:nothing')


@pytest.mark.parametrize(
    ('values', 'user'),
    [
        ({'user_id': 'f00d', 'user_name': 'ann'}, 'ann'),
        ({'user_id': 'f00d'}, 'f00d'),
        ({}, None),
    ],
)
def test_the_user_is_known_beyond_the_bus(values, user):
    made = context.RequestContext(**values, overwrite=False)
    assert context.RequestContext.from_dict(made.to_dict()).user == user
