# SPDX-License-Identifier: Apache-2.0
import os
import pwd

import pytest

from cyborg_lite import accounts


def test_a_user_has_the_name_of_its_account():
    assert accounts.name(os.getuid()) == pwd.getpwuid(os.getuid()).pw_name


def test_a_user_without_a_name():
    assert accounts.name(2**31 - 7) == f'uid-{2**31 - 7}'


@pytest.mark.parametrize('found', ['uid-7', 'j' * 65, 'bad\udcff', 'a\x1b[2J', ''])
def test_a_name_that_cannot_be_shown_or_is_of_another(monkeypatch, found):
    entry = pwd.struct_passwd((found, 'x', 4711, 4711, '', '/', ''))
    monkeypatch.setattr(pwd, 'getpwuid', lambda uid: entry)
    assert accounts.name(4711) == 'uid-4711'


def test_the_projects_of_users_are_known():
    own = pwd.getpwuid(os.getuid()).pw_name
    for text in (own, 'lab', 'uid-7', 'uid-4294967295'):
        assert accounts.is_of_user(text, {'jane': 'lab'})
    for text in ('no-such-user', 'jane-', 'uid-x', 'uid-12345678901'):
        assert not accounts.is_of_user(text, {'jane': 'lab'})


@pytest.mark.parametrize(
    ('user', 'projects', 'project'),
    [
        ('jane', {}, 'jane'),
        ('jane', {'bob': 'lab'}, 'jane'),
        ('lab', {'bob': 'lab'}, 'uid-7'),
        ('lab', {'bob': 'lab', 'lab': 'lab'}, 'lab'),
        ('jane', {'jane': 'lab'}, 'lab'),
        ('jane', {'jane': 'a/b'}, 'uid-7'),
        ('jane', {'jane': ''}, 'uid-7'),
        ('DOMAIN\\jane', {}, 'uid-7'),
        ('DOMAIN\\jane', {'DOMAIN\\jane': 'lab'}, 'lab'),
        ('j' * 65, {}, 'uid-7'),
        ('defaults', {}, 'uid-7'),
        ('own', {}, 'uid-7'),
        ('jane\n', {}, 'uid-7'),
        ('a b', {}, 'uid-7'),
        ('', {}, 'uid-7'),
    ],
)
def test_the_project_of_a_user(user, projects, project):
    assert accounts.project(7, user, projects) == project
