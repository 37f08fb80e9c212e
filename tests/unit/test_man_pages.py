# SPDX-License-Identifier: Apache-2.0
"""Each command has a man page and, where it is typed by hand, completion: with all its options."""

import argparse
import configparser
import contextlib
import re
import runpy
import subprocess

import pytest

from cyborg_lite import conf as options_
from cyborg_lite.cmd import dbsync
from cyborg_lite.cmd import discover
from cyborg_lite.cmd import main
from cyborg_lite.cmd import status
from tests import pages

CLI = pages.ROOT / 'doc/source/cli'
COMPLETION = pages.ROOT / 'etc/bash_completion/cyborg-lite'


def commands():
    setup = configparser.ConfigParser()
    setup.read(pages.ROOT / 'setup.cfg')
    points = setup['options.entry_points']['console_scripts'].split()
    return sorted(word for word in points if word.startswith('cyborg-lite'))


def options(parser, *words):
    """What --help names."""

    def said(capsys):
        with contextlib.suppress(SystemExit):
            parser().parse_args([*words, '--help'])
        # A line of an option: its names, two spaces or more, and what it does.
        lines = re.findall(r'^ {2}(-.*?)(?: {2}.*)?$', capsys.readouterr().out, flags=re.M)
        return set(re.findall(r'--[a-z][a-z-]+', '\n'.join(lines)))

    return said


def _status():
    parser = argparse.ArgumentParser()
    status.add_commands(options_.new(), parser.add_subparsers())
    return parser


def test_each_command_has_a_page():
    assert len(commands()) == 6
    assert sorted(page.stem for page in CLI.glob('cyborg*.rst')) == commands()
    made = runpy.run_path(str(CLI.parent / 'conf.py'))['man_pages']
    assert sorted(name for _, name, *_ in made) == commands()
    assert {page for page, *_ in made} == {f'cli/{name}' for name in commands()}


@pytest.mark.parametrize(
    ('page', 'said'),
    [
        *(('cyborg-lite', options(main.parser, word)) for word in main.COMMANDS),
        ('cyborg-lite-dbsync', options(dbsync.parser)),
        ('cyborg-lite-discover', options(discover.parser)),
        ('cyborg-lite-status', options(_status, 'upgrade')),
        ('cyborg-lite-status', options(_status, 'audit')),
        ('cyborg-lite-dbsync', options(dbsync.parser, 'import')),
        ('cyborg-lite-dbsync', options(dbsync.parser, 'online_data_migrations')),
    ],
)
def test_a_page_has_each_option(page, said, capsys):
    text = (CLI / f'{page}.rst').read_text()
    assert {option for option in said(capsys) if option not in text} == set()


@pytest.mark.parametrize('word', ['', *main.COMMANDS])
def test_completion_knows_each_option(word, capsys):
    words = f'cyborg-lite {word} --'.split()
    script = f"""
        source {COMPLETION}
        COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}
        _cyborg_lite
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(['bash', '-c', script], check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) == options(main.parser, *words[1:-1])(capsys)
