# SPDX-License-Identifier: Apache-2.0
"""Many requests, page by page: none is lost, and no page costs more than another.

LIST_ROWS=100000 makes so many of them, as every night does.
"""

import gc
import os
import sys
import time

import sqlalchemy as sa

from cyborg_lite import model
from cyborg_lite.api import app

ROWS, PAGE = int(os.environ.get('LIST_ROWS', '20000')), 1000
#: After so many pages all caches are filled.
WARM = 5


def blocks():
    """The number of memory blocks of the interpreter.

    The memory of the process would depend on the tests that ran before.
    """
    gc.collect()
    return sys.getallocatedblocks()


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
    path, seen, taken = f'/v2/accelerator_requests?limit={PAGE}', [], {}
    with service.statements() as statements:
        while path:
            statements.clear()
            answer = service.api.get(path).json
            assert len(statements) <= 3, statements
            assert len(answer['arqs']) == PAGE
            seen += [arq['uuid'] for arq in answer['arqs']]
            page = len(seen) // PAGE
            if page in (WARM, ROWS // PAGE):
                taken[page] = blocks()
            [path] = [link['href'] for link in answer.get('arqs_links', ())] or [None]
    print(f'filled in {filled - begun:.1f} s, read in {time.perf_counter() - filled:.1f} s')
    early, late = taken.values()
    # One for each uuid, which is kept here: a page that stayed would take several for each row.
    rows = ROWS - WARM * PAGE
    print(f'{(late - early) / rows:.2f} pieces of memory are kept for each row')
    assert late - early < 1.1 * rows
    assert len(seen) == ROWS
    assert set(seen) == wanted
