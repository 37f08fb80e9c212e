# SPDX-License-Identifier: Apache-2.0
"""For authors of drivers: hosts, tools that fail, and the contract, as tests of pytest.

The contract of a driver over hosts, in a package of its own::

    from cyborg_lite.driver import testing
    class TestContract(testing.Contract):
        drivers, hosts = ['acme_npu'], ['*.yaml']

and a test of what the driver finds, where ``conftest.py`` has
``pytest_plugins = ['cyborg_lite.driver.testing']``::

    def test_a_tool_that_hangs(lay_out):
        host = lay_out('acme.yaml')
        host.tools['acme-smi'] = testing.Fault.HANGS
        [card] = testing.discover(AcmeNpu, host)
        assert card.serial is None
"""

from __future__ import annotations

import collections.abc
import contextlib
import enum
import fnmatch
from importlib import metadata
import itertools
import json
import os
import pathlib
import shutil
import typing

from oslo_config import cfg
import pytest

from cyborg_lite import contract
from cyborg_lite import driver
from cyborg_lite.driver import description
from cyborg_lite.driver import host as hosts_
from cyborg_lite.driver import recording
from cyborg_lite.driver import watching

#: The group of entry points by which drivers are known.
GROUP = 'cyborg_lite.drivers'
#: A function of nobody's, which each host of the suite has: what finds it finds anything.
STRANGER: description.Data = {
    'id': '1234:0001',
    'class': 'ff0000',
    'at': {'-1': ['fffe:fe:1f.7']},
    'driver': 'pci-stub',
}

#: Where a class of tests keeps its hosts.
LAID_OUT = pytest.StashKey[dict[str, driver.Host]]()

Found = list[driver.Device]
Kind = type[driver.Driver]


class Fault(enum.Enum):
    """What a tool may do other than to answer."""

    #: it is not installed
    MISSING = 'missing'
    #: it ends with an exit status
    FAILS = 'exit status 1: {said!r}'
    #: it does not end: the driver is told so at once, as after its timeout
    HANGS = 'no answer within {timeout:g} s'
    #: it prints nothing
    SILENT = ''
    #: it prints what is no answer
    RUBBISH = '\x00\ufffd|:\t| 99 | : \n<html>{"[' + '0000:ffff\r\n-|' * 40


class Host(driver.Host):
    """A host whose tools do what a test says, and print what is described where it says nothing."""

    def __init__(self, host: driver.Host) -> None:
        super().__init__(host.name, host.root, host.recorded)
        #: by ``tool`` or ``tool arguments``: what it prints, or does
        self.tools: dict[str, str | Fault | driver.ToolError] = {}
        #: the commands that were run, in order
        self.runs: list[str] = []

    def run(self, tool: str, *args: str, timeout: float = 10.0) -> str | None:
        command = ' '.join((tool, *args))
        self.runs.append(command)
        told = self.tools.get(command, self.tools.get(tool))
        if told is None:
            return super().run(tool, *args, timeout=timeout)
        if isinstance(told, driver.ToolError):
            raise told
        if told in (Fault.FAILS, Fault.HANGS):
            words = Fault(told).value.format(timeout=timeout, said='no device')
            raise driver.ToolError(f'{command}: {words}')
        if told is Fault.MISSING:
            return None
        self.outputs[tool, *args] = text = told.value if isinstance(told, Fault) else told
        return text


def lay_out_at(spec: str | description.Data, place: pathlib.Path, here: pathlib.Path) -> Host:
    """A host that is laid out below a directory, and that a test may change.

    :param spec: as ``cyborg-lite up --host`` takes it, a path relative to ``here``; a description,
        as text of several lines or as the mapping that it stands for
    """
    if isinstance(spec, dict) or '\n' in spec:
        data = description.parse(spec) if isinstance(spec, str) else spec
        description.write(data, place / 'host')
        return Host(driver.Host(data.get('name', 'host'), place / 'host'))
    known = spec if spec in hosts_.shipped() else str(here / spec)
    if os.path.isdir(known):
        # A recording that is read where it lies is not to be changed.
        known = str(shutil.copytree(known, place / pathlib.Path(spec).name, symlinks=True))
    return Host(hosts_.find(known, place / 'laid-out'))


@pytest.fixture
def lay_out(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> collections.abc.Callable[[str | description.Data], Host]:
    """Lay hosts out: a function of what a description says, or of where one is.

    A path is relative to the directory of the test's file.
    """
    return lambda spec: lay_out_at(spec, tmp_path_factory.mktemp('host'), request.path.parent)


def discover(kind: Kind, host: driver.Host, conf: cfg.ConfigOpts | None = None) -> Found:
    """What a driver finds in a host.

    :raises AssertionError: when the driver does not keep to its contract: see
        :mod:`cyborg_lite.contract`.  Nor may a second look at an unchanged host differ, nor two
        devices have one serial number, nor may they come in another order than that of their
        addresses.
    """
    subject = kind(host, conf or cfg.ConfigOpts())
    devices = _sound(kind, subject.look()[0])
    first, second = _facts(devices), _facts(subject.look()[0])
    _expect(first == second, kind, f'two looks differ: {first} and {second}')
    return devices


def _sound(kind: Kind, found: typing.Any) -> Found:
    """The devices, if they keep to the contract."""
    devices, complaints = contract.check(found)
    _expect(not complaints, kind, '; '.join(complaints))
    addresses = [device.address for device in devices]
    _expect(addresses == sorted(addresses), kind, f'not in order of addresses: {addresses}')
    serials = [device.serial for device in devices if device.serial]
    twice = sorted({serial for serial in serials if serials.count(serial) > 1})
    _expect(not twice, kind, f'several devices have one serial number: {twice}')
    return devices


def _facts(devices: Found) -> str:
    return json.dumps([device.facts() for device in devices])


def _expect(sound: object, kind: Kind, words: str) -> None:
    if not sound:
        raise AssertionError(f'{kind.name}: {words}')


def _make_nothing(path: pathlib.Path, _was: pathlib.Path) -> None:
    """A file that is not there."""


LINKS = 'lead out of the host'
#: What may be in the place of a file, by how that reads: functions of the place, and of where the
#: file is meanwhile.
DAMAGES: dict[str, collections.abc.Callable[[pathlib.Path, pathlib.Path], object]] = {
    'are missing': _make_nothing,
    'are no text': lambda path, _was: path.write_bytes(bytes(range(256)) * 64),
    'are empty': lambda path, _was: path.touch(),
    'are a long number': lambda path, _was: path.write_bytes(b'9' * 100_000),
    'are directories': lambda path, _was: path.mkdir(),
    LINKS: lambda path, was: path.symlink_to(was),
}
#: What says that a function is a card: where it cannot be read, nothing else is read.
IDENTITY = ('vendor', 'device', 'class')


@contextlib.contextmanager
def _damaged(
    files: collections.abc.Iterable[pathlib.Path],
    damage: collections.abc.Callable[[pathlib.Path, pathlib.Path], object],
    aside: pathlib.Path,
) -> collections.abc.Iterator[None]:
    """Put something else in the place of files until the block ends."""
    moved = {path: aside / str(number) for number, path in enumerate(files)}
    for path, was in moved.items():
        path.rename(was)
        damage(path, was)
    try:
        yield
    finally:
        for path, was in moved.items():
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
            was.rename(path)


class Contract:
    """The contract of drivers, over hosts: derive a class ``Test...`` that names both.

    Each host has a function besides that is nobody's.  Files and tools of a host are damaged only
    if the driver finds a device there.
    """

    #: the drivers, each a class or the name of its entry point
    drivers: collections.abc.Sequence[Kind | str] = ()
    #: the hosts: names of those that come with us, or paths of descriptions, directories and
    #: tarballs, relative to the test's file; in the last part of a path * and ? stand for others
    hosts: collections.abc.Sequence[str] = ()
    #: the configuration of the drivers
    conf: cfg.ConfigOpts | None = None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Have a test for each driver, and one for each host."""
        here = metafunc.definition.path.parent
        kinds = [_kind(each) for each in self.drivers]
        specs = [spec for each in self.hosts for spec in _specs(each, here)]
        if not kinds or not specs:
            raise ValueError(f'{type(self).__name__}: expected drivers and hosts')
        if 'kind' in metafunc.fixturenames:
            metafunc.parametrize('kind', kinds, ids=[kind.name for kind in kinds])
        if 'spec' in metafunc.fixturenames:
            metafunc.parametrize('spec', specs)

    @pytest.fixture
    def host_of(
        self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> collections.abc.Callable[[str], Host]:
        """A host, which is laid out once: a test that changes its files restores them."""
        known = request.node.getparent(pytest.Class).stash.setdefault(LAID_OUT, {})

        def find(spec: str) -> Host:
            if spec not in known:
                place = tmp_path_factory.mktemp('host')
                known[spec] = lay_out_at(spec, place, request.path.parent)
                description.add(STRANGER, known[spec].root)
            return Host(known[spec])

        return find

    @pytest.fixture
    def host(self, spec: str, host_of: collections.abc.Callable[[str], Host]) -> Host:
        return host_of(spec)

    def test_devices_are_sound(self, kind: Kind, host: Host) -> None:
        """Devices keep to :func:`discover`, and all that they tell is of the host."""
        with watching.Watch(host.root) as watch:
            devices = discover(kind, host, self.conf)
        strayed = sorted(set(watch.strayed))
        _expect(not strayed, kind, f'it asks this machine, not {host.name}: {strayed}')
        # A driver that starts anew knows nothing of the looks before.
        first, second = _facts(devices), _facts(self._look(kind, host)[0])
        _expect(first == second, kind, f'two instances differ: {first} and {second}')
        address = STRANGER['at']['-1'][0]
        _expect(address not in _addresses(devices), kind, 'it takes a card of nobody for its own')

    def test_an_empty_host_has_no_device(self, kind: Kind, tmp_path: pathlib.Path) -> None:
        """Where there is nothing, nothing is found."""
        found = discover(kind, driver.Host('empty', tmp_path), self.conf)
        _expect(not found, kind, f'it finds {_addresses(found)} in nothing')

    def test_one_of_the_hosts_has_a_device(
        self,
        kind: Kind,
        request: pytest.FixtureRequest,
        host_of: collections.abc.Callable[[str], Host],
    ) -> None:
        """The driver finds something: else its other tests say nothing."""
        specs = [spec for each in self.hosts for spec in _specs(each, request.path.parent)]
        found = any(self._look(kind, host_of(spec))[0] for spec in specs)
        _expect(found, kind, f'it finds no device in any of {specs}')

    def test_damaged_files_are_survived(
        self, kind: Kind, host: Host, tmp_path: pathlib.Path
    ) -> None:
        """What cannot be read as expected raises nothing, and makes no device.

        The files that the driver reads are damaged, all at once and those of each name.
        """
        with watching.Watch(host.root) as watch:
            known = _addresses(self._look(kind, host)[0])
        tools = host.root / 'tools'
        read = sorted(path for path in watch.files if not path.is_relative_to(tools))
        more = [path for path in read if path.name not in IDENTITY]
        cases = [(words, 'all files', read) for words in DAMAGES]
        cases += [(words, 'all files but those of ids', more) for words in DAMAGES]
        for name in sorted({path.name for path in read}):
            files = [path for path in read if path.name == name]
            cases.append(('are missing', f'files {name}', files))
        for words, place, files in cases if known else ():
            with _damaged(files, DAMAGES[words], tmp_path):
                watch = watching.Watch(host.root)
                # A watch takes as long as the look.
                with watch if words == LINKS else contextlib.nullcontext():
                    self._look_at_damage(kind, host, known, f'where {place} {words}')
                _expect(not watch.strayed, kind, f'where {place} {words}: it {watch.strayed}')

    def _look_at_damage(self, kind: Kind, host: Host, known: list[str], place: str) -> None:
        try:
            found = _sound(kind, self._look(kind, host)[0])
        except Exception as error:
            raise AssertionError(f'{kind.name}: {place}: {error!r}') from error
        invented = sorted({*_addresses(found)} - {*known})
        _expect(not invented, kind, f'{place}: it invents {invented}')

    def test_a_tool_that_fails_costs_no_device(self, kind: Kind, host: Host) -> None:
        """Devices that a tool does not tell this time are still there, or the driver says so.

        It says so by a :class:`driver.ToolError`, or by ``note(text, complete=False)``.  Where the
        tool is not installed there may be fewer devices.  See :class:`Fault`.
        """
        known = _addresses(self._look(kind, host)[0])
        tools = {command.split()[0] for command in host.runs} if known else set()
        # Asked for the first time, and when it was answered before.
        for fault, before in itertools.product(Fault if tools else (), (False, True)):
            subject = kind(host, self.conf or cfg.ConfigOpts())
            if before:
                subject.look()
            host.tools = dict.fromkeys(tools, fault)
            try:
                found = _addresses(_sound(kind, subject.look()[0]))
            except driver.ToolError:
                found, subject.complete = [], False
            host.tools = {}
            place = f'where its tool is {fault.name}'
            invented, lost = ({*found} - {*known}), ({*known} - {*found})
            _expect(not invented, kind, f'{place}: it invents {sorted(invented)}')
            said = fault is Fault.MISSING or not subject.complete
            _expect(said or not lost, kind, f'{place}: it loses {sorted(lost)}')

    def test_a_recording_shows_the_same(
        self, kind: Kind, host: Host, tmp_path: pathlib.Path
    ) -> None:
        """What the driver reads of a host is recorded: see ``cyborg-lite record``."""
        before = self._look(kind, host)[0]
        if before:
            recording.record(host, tmp_path / 'copy.tar.gz', with_serials=True)
            copy = hosts_.find(str(tmp_path / 'copy.tar.gz'), tmp_path)
            first, second = _facts(before), _facts(self._look(kind, copy)[0])
            _expect(first == second, kind, f'its recording differs: {first} and {second}')

    def _look(self, kind: Kind, host: driver.Host) -> tuple[Found, list[str]]:
        return kind(host, self.conf or cfg.ConfigOpts()).look()


def _kind(given: Kind | str) -> Kind:
    """The driver: a class, or what the entry point of that name loads."""
    if not isinstance(given, str):
        return given
    points = [point for point in metadata.entry_points(group=GROUP) if point.name == given]
    if not points:
        raise ValueError(f'{given!r}: expected the name of an entry point in {GROUP}')
    return typing.cast('Kind', points[0].load())


def _specs(spec: str, here: pathlib.Path) -> list[str]:
    """The hosts that a spec stands for."""
    path = here / spec
    if '*' not in path.name and '?' not in path.name:
        return [spec]
    found = sorted(fnmatch.filter(os.listdir(path.parent), path.name))
    if not found:
        raise ValueError(f'{spec!r}: expected to match a host in {path.parent}')
    return [str(pathlib.Path(spec).with_name(name)) for name in found]


def _addresses(devices: Found) -> list[str]:
    return [device.address for device in devices]
