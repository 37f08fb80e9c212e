# SPDX-License-Identifier: Apache-2.0
"""The file of passwords: who may log in, errors of the file, and the cost of guesses."""

import base64
import io
import logging
import threading

import bcrypt
from oslo_config import cfg
from oslo_log import formatters
import pytest

from cyborg_lite import conf as options
from cyborg_lite.api import userfiles
from cyborg_lite.api import users
from tests import support

DEVICES = '/v2/devices'
#: How long anything may take that is to happen, in seconds.
PATIENCE = 20


def hashed(password='secret', cost=4):
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


#: With a fixed salt: it is a part of the names of tests, which are the same in each process.
HASH = bcrypt.hashpw(b'secret', b'$2b$04$abcdefghijklmnopqrstuu').decode()


@pytest.fixture
def file(tmp_path):
    return tmp_path / 'htpasswd'


@pytest.fixture
def start(file, database_url):
    made = []

    def start(text):
        file.write_text(text)
        settings = {
            'api__auth_strategy': 'http_basic',
            'api__http_basic_auth_user_file': str(file),
        }
        made.append(support.Service(database_url, **settings))
        return Asked(made[-1])

    yield start
    for each in made:
        each.stop()


class Asked:
    """``asked(name, password)``: the answer to a request of this user."""

    def __init__(self, service):
        self.service = service
        self.api = support.Api(support.local(service.embedded.application))

    def __call__(self, name, password='secret'):
        token = base64.b64encode(f'{name}:{password}'.encode()).decode()
        return self.api.get(DEVICES, Authorization=f'Basic {token}')

    def status(self, name, password='secret'):
        return self(name, password).status_int


@pytest.mark.parametrize('first', ['# the users of the lab', '# note: the users', '', ' #a:b', '#'])
def test_comments_name_no_user(start, first):
    asked = start(f'{first}\n#ann:{HASH}\n\n  # eve:{HASH}\nbob:{HASH}\n')
    assert asked.status('bob') == 200
    for name in ('#ann', 'ann', '  # eve', '# eve', 'eve', '', '# note', '#'):
        refused = asked(name)
        assert refused.status_int == 401, name
        assert support.fault(refused) == support.fault(asked('bob', 'wrong'))


@pytest.mark.parametrize(
    'line',
    [
        'ann', 'ann:', f':{HASH}', 'ann:plain', 'ann:$apr1$a$b', f'ann:{HASH}:more', f'{HASH}',
        f'ann:{HASH[:-1]}', f'ann:{HASH}a', f'ann:{HASH} # of the lab', f'ann: {HASH}',
        f'ann:$2x${HASH[4:]}', f'ann:$2b$03{HASH[6:]}', f'ann:$2b$32{HASH[6:]}',
        f'{"a" * 256}:{HASH}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_entry_is_refused(start, file, line):
    with pytest.raises(cfg.ConfigFileValueError) as refused:
        start(f'# first\nbob:{HASH}\n{line}\n')
    said = str(refused.value)
    place = f'[api] http_basic_auth_user_file: {file}, line 3: '
    assert said == f'{place}expected NAME:HASH with a bcrypt hash: write it with htpasswd -B'


def test_a_user_has_one_password(start):
    with pytest.raises(cfg.ConfigFileValueError, match='line 3: user ann is in line 1 already'):
        start(f'ann:{HASH}\n\nann:{hashed("other")}\n')


def test_an_absent_file_is_named(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    with pytest.raises(cfg.ConfigFileValueError) as refused:
        users.Users(file.name)
    said = str(refused.value)
    assert said.startswith(f'[api] http_basic_auth_user_file: {file}: No such file or directory')
    assert 'htpasswd -B -c FILE NAME' in said


@pytest.mark.parametrize('kind', ['a line', 'bytes', 'absent', 'large'])
def test_a_file_that_breaks_changes_nothing(start, file, kind, caplog):
    asked = start(f'ann:{HASH}\n')
    text = {'a line': b'eve\n', 'bytes': b'\xff\n', 'large': b'#' * (userfiles.MOST + 1)}
    if kind == 'absent':
        file.unlink()
    else:
        file.write_bytes(f'eve:{HASH}\n'.encode() + text[kind])
    for _ in range(3):
        assert asked.status('ann') == 200
        assert [asked.status('ann', 'wrong'), asked.status('eve')] == [401, 401]
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert [str(file) in each for each in said] == [True]
    file.write_text(f'eve:{HASH}\n')
    assert [asked.status('ann'), asked.status('eve')] == [401, 200]


def test_the_cost_of_a_hash_tells_no_name(start, monkeypatch):
    """A comparison costs two to the power of the hash's cost."""
    asked = start(f'low:{hashed(cost=4)}\nhigh:{hashed(cost=7)}\nmiddle:{hashed(cost=5)}\n')
    work, check = [], bcrypt.checkpw
    monkeypatch.setattr(
        bcrypt, 'checkpw', lambda *args: (work.append(2 ** int(args[1][4:6])), check(*args))[1]
    )
    for name in ('low', 'high', 'middle', 'unknown', ''):
        work.clear()
        assert asked.status(name, 'wrong') == 401
        assert sum(work) == 2**7, name
    # A right password takes no longer than its own hash.
    work.clear()
    assert asked.status('low') == 200
    assert work == [2**4]


@pytest.mark.parametrize(
    'header',
    [
        None, '', 'Basic', 'Basic ', 'Basic !', 'Basic YQ==', 'Bearer YTpi', 'Basic YW5uOndyb25n',
        'Basic /zph', f'Basic {base64.b64encode(b"ann:" + b"a" * 73).decode()}', 'YW5uOnNlY3JldA==',
    ],
)  # fmt: skip
def test_each_refusal_is_the_same(start, header):
    asked = start(f'ann:{HASH}\n')
    given = {} if header is None else {'Authorization': header}
    refused = asked.api.get(DEVICES, **given)
    assert refused.status_int == 401
    assert support.fault(refused) == 'Expected the name and the password of a user.'
    assert refused.headers['WWW-Authenticate'] == 'Basic realm="cyborg_lite"'


def test_a_refused_name_is_logged_alone_and_on_one_line(start):
    asked = start(f'ann:{HASH}\n')
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatters.ContextFormatter(config=options.load(files=[])))
    logging.root.addHandler(handler)
    level = logging.root.level
    logging.root.setLevel(logging.INFO)
    try:
        assert asked.status('ann') == 200
        stream.seek(0)
        stream.truncate()
        assert asked.status('eve\n2026-01-01 ERROR forged\x1b[2J') == 401
    finally:
        logging.root.removeHandler(handler)
        logging.root.setLevel(level)
    [line] = stream.getvalue().splitlines()
    assert 'eve?2026-01-01 ERROR forged?[2J' in line
    assert 'ann' not in line


class Slow:
    """Comparisons of passwords that take until they are let go."""

    def __init__(self, monkeypatch):
        self._go = threading.Event()
        self._begun = threading.Semaphore(0)
        self._check = bcrypt.checkpw
        monkeypatch.setattr(bcrypt, 'checkpw', self._compare)

    def _compare(self, *args):
        self._begun.release()
        assert self._go.wait(PATIENCE)
        return self._check(*args)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._go.set()

    def begun(self):
        assert self._begun.acquire(timeout=PATIENCE)


def test_few_passwords_are_compared_at_once(start, monkeypatch):
    asked = start(f'ann:{HASH}\nbob:{HASH}\n')
    assert asked.status('ann') == 200
    with Slow(monkeypatch) as slow:
        statuses = []
        guessing = [
            threading.Thread(target=lambda: statuses.append(asked.status('eve')))
            for _ in range(users.COMPARISONS)
        ]
        for each in guessing:
            each.start()
            slow.begun()
        for name in ('bob', 'eve'):
            refused = asked(name)
            assert refused.status_int == 503
            assert refused.headers['Retry-After'] == '1'
            assert 'passwords are being compared now' in support.fault(refused)
        # What needs no comparison is answered.
        for path in ('/healthcheck/live', '/healthcheck', '/v2'):
            assert asked.api.get(path).status_int == 200
        assert asked.status('ann') == 200
    for each in guessing:
        each.join(PATIENCE)
    assert statuses == [401] * users.COMPARISONS
    assert [asked.status('bob'), asked.status('eve')] == [200, 401]


def test_a_password_that_was_right_is_compared_again_when_it_is_changed(start, file):
    asked = start(f'ann:{HASH}\n')
    assert [asked.status('ann'), asked.status('ann'), asked.status('ann', 'new')] == [200, 200, 401]
    file.write_text(f'ann:{hashed("new")}\n')
    assert [asked.status('ann'), asked.status('ann', 'new')] == [401, 200]
    file.write_text('')
    assert asked.status('ann', 'new') == 401
