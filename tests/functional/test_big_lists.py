# SPDX-License-Identifier: Apache-2.0
"""A hundred thousand requests, page by page: none is lost, and no page costs more than another."""

import gc
import os
import pathlib
import time

import sqlalchemy as sa

from cyborg_lite import model
from cyborg_lite.api import app

ROWS, PAGE = 100_000, 1000


def resident():
    """The memory of this process, in MiB, without what waits to be collected: in a process that has
    many objects it waits for long.
    """
    gc.collect()
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def fill(service):
    service.profile()
    [profile] = service.rows(model.DeviceProfile)
    row = {'device_profile_id': profile.id, 'project_id': app.ALONE['X-Project-Id']}
    with service.database.writer() as session:
        for _ in range(ROWS // 10_000):
            session.execute(sa.insert(model.ARQ), [dict(row) for _ in range(10_000)])
        return {row.uuid for row in session.execute(sa.select(model.ARQ.uuid))}


def test_a_long_list_is_read_page_by_page(service):
    begun = time.perf_counter()
    wanted = fill(service)
    filled = time.perf_counter()
    path, seen, memory = f'/v2/accelerator_requests?limit={PAGE}', [], {}
    with service.statements() as statements:
        while path:
            statements.clear()
            answer = service.api.get(path).json
            assert len(statements) <= 3, statements
            assert len(answer['arqs']) == PAGE
            seen += [arq['uuid'] for arq in answer['arqs']]
            page = len(seen) // PAGE
            if page in (5, ROWS // PAGE):
                memory[page] = resident()
            [path] = [link['href'] for link in answer.get('arqs_links', ())] or [None]
    print(f'filled in {filled - begun:.1f} s, read in {time.perf_counter() - filled:.1f} s')
    early, late = memory.values()
    print(f'resident: {early:.0f} MiB at page 5, {late:.0f} MiB at the last')
    assert len(seen) == ROWS
    assert set(seen) == wanted
    # The uuids that are kept here are 9 MiB.
    assert late - early < 25
