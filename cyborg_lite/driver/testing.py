# SPDX-License-Identifier: Apache-2.0
"""Test tools for authors of drivers: hosts, failing tools, and the contract, for pytest.

The contract of a driver over hosts, in another package::

    from cyborg_lite.driver import testing
    class TestContract(testing.Contract):
        drivers, hosts = ['acme_npu'], ['*.yaml']

and a test of the driver's findings, where ``conftest.py`` has
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

#: The group of the entry points of drivers.
GROUP = 'cyborg_lite.drivers'
#: A function of an unknown vendor, which each host of the suite has: no driver may find it.
STRANGER: description.Data = {
    'id': '1234:0001',
    'class': 'ff0000',
    'at': {'-1': ['fffe:fe:1f.7']},
    'driver': 'pci-stub',
}

#: The key under which a test class stores its hosts.
LAID_OUT = pytest.StashKey[dict[str, driver.Host]]()

Found = list[driver.Device]
Kind = type[driver.Driver]


class Fault(enum.Enum):
    """The faults of a tool."""

    #: it is not installed
    MISSING = 'missing'
    #: it exits with an error status
    FAILS = 'exit status 1: {said!r}'
    #: it does not end: the driver gets the timeout error at once
    HANGS = 'no answer'
    #: it prints nothing
    SILENT = ''
    #: it prints an invalid answer
    RUBBISH = '\x00\ufffd|:\t| 99 | : \n<html>{"[' + '0000:ffff\r\n-|' * 40


class Host(driver.Host):
    """A host whose tools do what a test sets, and otherwise print the described output."""

    def __init__(self, host: driver.Host) -> None:
        super().__init__(host.name, host.root, host.recorded)
        #: by ``tool`` or ``tool arguments``: its output, or its fault
        self.tools: dict[str, str | Fault | driver.ToolError] = {}
        #: the commands that were run and the questions to libraries, in order
        self.runs: list[str] = []

    def run(self, tool: str, *args: str, timeout: float = 10.0) -> str | None:
        """What the tool was told to print, or to fail with; else as on the host."""
        command = ' '.join((tool, *args))
        self.runs.append(command)
        told = self.tools.get(command, self.tools.get(tool))
        if told is None:
            return super().run(tool, *args, timeout=timeout)
        if isinstance(told, driver.ToolError):
            raise told
        if told is Fault.HANGS:
            raise hosts_.NoAnswer(command, timeout)
        if told is Fault.FAILS:
            raise driver.ToolError(f'{command}: {told.value.format(said="no device")}')
        if told is Fault.MISSING:
            return None
        self.outputs[tool, *args] = text = told.value if isinstance(told, Fault) else told
        return text


def lay_out_at(spec: str | description.Data, place: pathlib.Path, here: pathlib.Path) -> Host:
    """A host whose files are below a directory, and that a test may change.

    :param spec: a spec of ``cyborg-lite up --host``, with paths relative to ``here``; or a
        description, as a text of several lines or as a mapping
    """
    if isinstance(spec, dict) or '\n' in spec:
        data = description.parse(spec) if isinstance(spec, str) else spec
        description.write(data, place / 'host')
        return Host(driver.Host(data.get('name', 'host'), place / 'host'))
    known = spec if spec in hosts_.shipped() else str(here / spec)
    if os.path.isdir(known):
        # A recording must not be changed in place.
        known = str(shutil.copytree(known, place / pathlib.Path(spec).name, symlinks=True))
    return Host(hosts_.find(known, place / 'laid-out'))


@pytest.fixture
def lay_out(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> collections.abc.Callable[[str | description.Data], Host]:
    """A function that makes the files of a host, from a description or from its path.

    A path is relative to the directory of the test's file.
    """
    return lambda spec: lay_out_at(spec, tmp_path_factory.mktemp('host'), request.path.parent)


def discover(kind: Kind, host: driver.Host, conf: cfg.ConfigOpts | None = None) -> Found:
    """The devices that a driver finds in a host.

    :raises AssertionError: when the driver violates its contract: see
        :mod:`cyborg_lite.contract`. Also when a second scan of an unchanged host differs, when two
        devices have one serial number, or when devices are not sorted by address.
    """
    subject = kind(host, conf or cfg.ConfigOpts())
    devices = _sound(kind, subject.look()[0])
    first, second = _facts(devices), _facts(subject.look()[0])
    _expect(first == second, kind, f'two looks differ: {first} and {second}')
    return devices


def _sound(kind: Kind, found: typing.Any) -> Found:
    """The devices, if they fulfil the contract."""
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
    """Leave no file."""


LINKS = 'lead out of the host'
#: The damages of a file by their description: functions of its path, and of the path to which the
#: file was moved.
DAMAGES: dict[str, collections.abc.Callable[[pathlib.Path, pathlib.Path], object]] = {
    'are missing': _make_nothing,
    'are no text': lambda path, _was: path.write_bytes(bytes(range(256)) * 64),
    'are empty': lambda path, _was: path.touch(),
    'are a long number': lambda path, _was: path.write_bytes(b'9' * 100_000),
    'are directories': lambda path, _was: path.mkdir(),
    LINKS: lambda path, was: path.symlink_to(was),
}
#: The attributes that identify a card: if they cannot be read, nothing else is read.
IDENTITY = ('vendor', 'device', 'class')


@contextlib.contextmanager
def _damaged(
    files: collections.abc.Iterable[pathlib.Path],
    damage: collections.abc.Callable[[pathlib.Path, pathlib.Path], object],
    aside: pathlib.Path,
) -> collections.abc.Iterator[None]:
    """Replace files by a damage until the block ends."""
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
    """The contract of drivers over hosts: derive a class ``Test...`` that names both.

    Each host also has a function of an unknown vendor.  Files and tools of a host are damaged only
    if the driver finds a device there.
    """

    #: the drivers, each a class or the name of its entry point
    drivers: collections.abc.Sequence[Kind | str] = ()
    #: the hosts: names of shipped ones, or paths of descriptions, directories and tarballs,
    #: relative to the test's file; the last part of a path may have the wildcards * and ?
    hosts: collections.abc.Sequence[str] = ()
    #: the configuration of the drivers
    conf: cfg.ConfigOpts | None = None

    def lay_out(self, spec: str, place: pathlib.Path, here: pathlib.Path) -> driver.Host:
        """A host with files of its own: a subclass may know data of more forms.

        :param place: an empty directory for the files
        :param here: the directory of the test's file
        """
        return lay_out_at(spec, place, here)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrize the tests by driver and by host."""
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
        """A host, whose files are made once: a test that changes them restores them."""
        known = request.node.getparent(pytest.Class).stash.setdefault(LAID_OUT, {})

        def find(spec: str) -> Host:
            if spec not in known:
                place = tmp_path_factory.mktemp('host')
                known[spec] = self.lay_out(spec, place, request.path.parent)
                description.add(STRANGER, known[spec].root)
            return Host(known[spec])

        return find

    @pytest.fixture
    def host(self, spec: str, host_of: collections.abc.Callable[[str], Host]) -> Host:
        return host_of(spec)

    def test_devices_are_sound(self, kind: Kind, host: Host) -> None:
        """Devices fulfil the contract of :func:`discover`, and all facts come from the host."""
        with watching.Watch(host.root) as watch:
            devices = discover(kind, host, self.conf)
        strayed = sorted(set(watch.strayed))
        _expect(not strayed, kind, f'it asks this machine, not {host.name}: {strayed}')
        # A new driver object has no memory of earlier scans.
        first, second = _facts(devices), _facts(self._look(kind, host)[0])
        _expect(first == second, kind, f'two instances differ: {first} and {second}')
        address = STRANGER['at']['-1'][0]
        _expect(address not in _addresses(devices), kind, 'it takes a card of nobody for its own')

    def test_an_empty_host_has_no_device(self, kind: Kind, tmp_path: pathlib.Path) -> None:
        """The driver finds nothing in an empty host."""
        found = discover(kind, driver.Host('empty', tmp_path), self.conf)
        _expect(not found, kind, f'it finds {_addresses(found)} in nothing')

    def test_one_of_the_hosts_has_a_device(
        self,
        kind: Kind,
        request: pytest.FixtureRequest,
        host_of: collections.abc.Callable[[str], Host],
    ) -> None:
        """The driver finds something: otherwise its other tests are void."""
        specs = [spec for each in self.hosts for spec in _specs(each, request.path.parent)]
        found = any(self._look(kind, host_of(spec))[0] for spec in specs)
        _expect(found, kind, f'it finds no device in any of {specs}')

    def test_damaged_files_are_survived(
        self, kind: Kind, host: Host, tmp_path: pathlib.Path
    ) -> None:
        """Unreadable files raise nothing, and make no device.

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
                # A watch takes as long as the scan itself.
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
        """After a failed tool the devices are still reported, or the driver reports the failure.

        It reports this by a :class:`driver.ToolError`, or by ``note(text, complete=False)``.  If
        the tool is not installed there may be fewer devices.  See :class:`Fault`.
        """
        known = _addresses(self._look(kind, host)[0])
        tools = {command.split()[0] for command in host.runs} if known else set()
        # In the first scan, and after a scan that succeeded.
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
        """The driver finds the same in a recording of the host: see ``cyborg-lite record``."""
        before = self._look(kind, host)[0]
        if before:
            recording.record(host, tmp_path / 'copy.tar.gz', with_serials=True)
            copy = hosts_.find(str(tmp_path / 'copy.tar.gz'), tmp_path)
            first, second = _facts(before), _facts(self._look(kind, copy)[0])
            _expect(first == second, kind, f'its recording differs: {first} and {second}')

    def _look(self, kind: Kind, host: driver.Host) -> tuple[Found, list[str]]:
        return kind(host, self.conf or cfg.ConfigOpts()).look()


def _kind(given: Kind | str) -> Kind:
    """The driver: a class, or the name of its entry point."""
    if not isinstance(given, str):
        return given
    points = [point for point in metadata.entry_points(group=GROUP) if point.name == given]
    if not points:
        raise ValueError(f'{given!r}: expected the name of an entry point in {GROUP}')
    return typing.cast('Kind', points[0].load())


def _specs(spec: str, here: pathlib.Path) -> list[str]:
    """The hosts that match a spec."""
    path = here / spec
    if '*' not in path.name and '?' not in path.name:
        return [spec]
    found = sorted(fnmatch.filter(os.listdir(path.parent), path.name))
    if not found:
        raise ValueError(f'{spec!r}: expected to match a host in {path.parent}')
    return [str(pathlib.Path(spec).with_name(name)) for name in found]


def _addresses(devices: Found) -> list[str]:
    return [device.address for device in devices]
