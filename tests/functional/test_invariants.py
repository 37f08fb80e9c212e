# SPDX-License-Identifier: Apache-2.0
"""The invariant of quotas finds rows that break it, and no others."""

import pytest

from cyborg_lite import model
from tests.integration import invariants

GROUPS = [{'resources:FPGA': '2'}, {'resources:PGPU': '1'}]


@pytest.fixture
def wrong(service):
    """``wrong(limits, groups, project)``: what is found where a project has these limits.

    :param groups: of each request, the number of its group.
    """

    def find(limits, groups, project='p'):
        with service.database.writer() as session:
            profile = model.DeviceProfile(name='one', groups=GROUPS)
            session.add_all([profile, model.Quota(project_id='p', limits=limits)])
            session.flush()
            session.add_all(
                model.ARQ(
                    device_profile_id=profile.id, device_profile_group_id=number, project_id=project
                )
                for number in groups
            )
            session.flush()
            return [*invariants.quotas(session)]

    return find


@pytest.mark.parametrize(
    ('limits', 'name', 'used'),
    [
        ({'FPGA': 1}, 'FPGA', 2),
        ({'PGPU': 0, 'FPGA': 2}, 'PGPU', 1),
        ({'total': 2, 'FPGA': 9}, 'total', 3),
    ],
)
def test_more_requests_than_a_limit_are_found(wrong, limits, name, used):
    [found] = wrong(limits, [0, 0, 1])
    assert found == f'I3: project p has {used} of {name}, and its limit is {limits[name]}'


@pytest.mark.parametrize(
    ('limits', 'project'),
    [
        ({}, 'p'),
        ({'FPGA': 2, 'PGPU': 1, 'total': 3}, 'p'),
        ({'FPGA': -1, 'total': model.Quota.UNLIMITED}, 'p'),
        ({'FPGA': 0, 'total': 0}, 'other'),
    ],
)
def test_what_is_within_its_limits_is_not_found(wrong, limits, project):
    assert wrong(limits, [0, 0, 1], project) == []
