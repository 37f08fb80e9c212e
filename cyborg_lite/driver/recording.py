# SPDX-License-Identifier: Apache-2.0
"""Recordings: pack what drivers read of a machine for a bug report, and unpack it."""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import io
import itertools
import lzma
import os
import pathlib
import re
import tarfile
import tempfile
import typing
import zlib

from cyborg_lite.driver import description
from cyborg_lite.driver import masking
from cyborg_lite.driver import sysfs
from cyborg_lite.driver import tarball

if typing.TYPE_CHECKING:
    from cyborg_lite.driver import host as hosts

#: The copied attributes of a function. Its configuration space and vital product data are left
#: out, as they hold serial numbers; so are the machine id and the UUID of the mainboard.
ATTRIBUTES = (
    'boot_vga',
    'class',
    'current_link_width',
    'device',
    'max_link_width',
    'numa_node',
    'revision',
    'sriov_numvfs',
    'sriov_offset',
    'sriov_stride',
    'sriov_totalvfs',
    'sriov_vf_device',
    'subsystem_device',
    'subsystem_vendor',
    'vendor',
)
#: Links of a function of which only the target's name matters, and the directories of the targets.
NAMED = {
    'driver': pathlib.PurePath('sys/bus/pci/drivers'),
    'iommu_group': pathlib.PurePath('sys/kernel/iommu_groups'),
}
#: The nodes of accelerators in /dev whose names are recorded.
NODES = re.compile(
    r'(v?davinci|nvidia|accel|hl)\d+|davinci_manager|devmm_svm|hisi_hdc|nvidiactl|kfd|(dfl|qat)\S+'
)
#: The maximum number of members of a tarball.
MEMBERS = 30_000
SIZE = 1 << 28
#: The maximum length of all links, in characters: they are kept in memory until the end.
LINKS = 1 << 25
#: The maximum depth of a member below the root.
LEVELS = 64
#: The maximum length of a path component, in bytes, as in Linux.
COMPONENT = 255
#: Errors for which a member is skipped: another file is at its path, or above it.
UNFIT = (FileExistsError, IsADirectoryError, NotADirectoryError)
#: Open a directory, but do not follow a link.
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: The maximum depth of sys/ below a directory.
DEPTH = 5


def locate(path: pathlib.Path) -> pathlib.Path:
    """The directory that holds sys/: the given one, or the nearest below it.

    :raises HostError: when there is none.
    """
    level = [path]
    for _ in range(DEPTH):
        for directory in level:
            if os.path.isdir(directory / 'sys'):
                return directory
        trees = [sysfs.Tree(directory) for directory in level]
        level = [tree.root / name for tree in trees for name in tree.names(tree.root)]
        level = [p for p in level if p.is_dir() and not p.is_symlink()][: sysfs.ENTRIES]
    raise description.HostError(f'{path}: expected a recorded sys/ in it, at most {DEPTH} deep')


def unpack(file: pathlib.Path, root: pathlib.Path) -> None:
    """Unpack an untrusted tarball into an empty directory.

    Only directories, regular files and symbolic links are made, and only if they cannot lead out
    of the directory.  All else is skipped, and so is a second member with the same path.

    :raises HostError: when it is not a tarball, or too large.
    """
    try:
        with tarball.opened(file) as stream, _Target(root) as target:
            _extract(tarball.Reader(stream, MEMBERS, SIZE), target)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise description.HostError(f'{file}: cannot be unpacked: {error}') from error


def _extract(members: tarball.Reader, target: _Target) -> None:
    links: list[tuple[list[str], str]] = []
    kept = 0
    for member in members:
        place = _place(member.name)
        if place and member.issym() and _leads_inside(place, member.linkname):
            kept += len(member.name) + len(member.linkname)
            if kept > LINKS:
                raise tarfile.ReadError(f'more than {LINKS >> 20} MiB of links')
            links.append((place, member.linkname))
        elif place and (member.isdir() or member.isreg()):
            with contextlib.suppress(*UNFIT):
                target.write(place, members.content() if member.isreg() else None)
    # Links are made last: until then no path leads through a link.
    for place, text in links:
        with contextlib.suppress(*UNFIT):
            target.link(place, text)


def _place(name: str) -> list[str] | None:
    """The components of a member's name; None if it may lead out, or is invalid."""
    parts = _components(name)
    long = any(len(os.fsencode(part)) > COMPONENT for part in parts)
    if name.startswith('/') or '\0' in name or '..' in parts or long or len(parts) > LEVELS:
        return None
    return parts or None


def _leads_inside(place: list[str], text: str) -> bool:
    """Whether the target of a link at that place is below the root, by the text alone.

    ``..`` is only allowed at the start: there it goes up from a directory, later maybe from a
    link.
    """
    parts = _components(text)
    up = len(list(itertools.takewhile('..'.__eq__, parts)))
    if text.startswith('/') or '\0' in text or not 0 < len(os.fsencode(text)) < tarball.NAME:
        return False
    return up < len(place) and '..' not in parts[up:]


def _components(path: str) -> list[str]:
    return [part for part in path.split('/') if part not in ('', '.')]


class _Target(contextlib.ExitStack):
    """The directory into which a tarball is unpacked.

    Each component of a path is opened separately, and no link is followed.
    """

    def __init__(self, root: pathlib.Path) -> None:
        super().__init__()
        self._root = os.open(root, DIRECTORY)
        self.callback(os.close, self._root)
        self._made = 0

    def write(self, place: list[str], content: collections.abc.Iterable[bytes] | None) -> None:
        """Make a file; a directory if there is no content."""
        if content is None:
            with self._directory(place):
                return
        with self._directory(place[:-1]) as parent:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(place[-1], flags, 0o600, dir_fd=parent), 'wb') as file:
                file.writelines(content)

    def link(self, place: list[str], text: str) -> None:
        with self._directory(place[:-1]) as parent:
            os.symlink(text, place[-1], dir_fd=parent)

    @contextlib.contextmanager
    def _directory(self, place: list[str]) -> collections.abc.Iterator[int]:
        """Open a directory, and make it if it is missing."""
        here = os.dup(self._root)
        try:
            for part in place:
                try:
                    inner = os.open(part, DIRECTORY, dir_fd=here)
                except FileNotFoundError:
                    self._count()
                    os.mkdir(part, 0o700, dir_fd=here)
                    inner = os.open(part, DIRECTORY, dir_fd=here)
                os.close(here)
                here = inner
            yield here
        finally:
            os.close(here)

    def _count(self) -> None:
        self._made += 1
        if self._made > MEMBERS:
            raise tarfile.ReadError(f'more than {MEMBERS} files and directories')


def record(host: hosts.Host, file: pathlib.Path, with_serials: bool = False) -> None:
    """Pack what drivers read of a host: PCI functions, names in /dev, output of tools, files.

    :param host: the object that the drivers used: call their discover() first
    :param file: the tarball to write, gzip; only the user may read it
    :param with_serials: keep identifying values of cards, machines and users
    :raises HostError: when the path exists and is not a file.
    """
    with _replaced(file) as made, tarfile.open(fileobj=made, mode='w:gz') as tar:
        _add_directory(tar, sysfs.DEVICES)
        for function in host.tree.functions():
            _add_function(tar, function)
        for name in filter(NODES.fullmatch, host.tree.names(host.tree.root / 'dev')):
            _add_file(tar, pathlib.PurePath('dev', name), b'')
        outputs, files = host.outputs, _read(host.tree)
        listed = {name: name for name in sorted(_listed(host.tree) - files.keys())}
        if not with_serials:
            outputs, files, listed = masking.mask(outputs, files, listed)
        for (tool, *args), text in outputs.items():
            _add_file(tar, description.output(tool, args), text.encode())
        for place, text in files.items():
            _add_file(tar, pathlib.PurePath(place), f'{text}\n'.encode())
        for place, shown in listed.items():
            if (host.root / place).is_dir():
                _add_directory(tar, pathlib.PurePath(shown))
            else:
                _add_file(tar, pathlib.PurePath(shown), b'')


def _read(tree: sysfs.Tree) -> dict[str, str]:
    """The texts of the files that drivers read, beside the attributes in ``ATTRIBUTES``."""
    names, functions = tree.attributes - {*ATTRIBUTES}, tree.functions()
    of_functions = {f.path.relative_to(tree.root) / name for f in functions for name in names}
    places = tree.read | of_functions
    texts = {str(place): tree.text(place) for place in sorted(places)}
    return {place: text for place, text in texts.items() if text is not None}


def _listed(tree: sysfs.Tree) -> set[str]:
    """The paths of the entries of directories that drivers listed."""
    places = (place / name for place in tree.listed for name in tree.names(tree.root / place))
    return {str(place) for place in places if tree.inside(tree.root / place)}


@contextlib.contextmanager
def _replaced(file: pathlib.Path) -> collections.abc.Iterator[typing.IO[bytes]]:
    """A new file, which replaces the old one once it is complete.  A link is not followed."""
    if file.exists() and not file.is_symlink() and not file.is_file():
        raise description.HostError(f'{file} is in the way: expected a file, or nothing')
    if not file.parent.is_dir():
        raise description.HostError(f'{file}: there is no directory {file.parent}')
    # The mode is 0600 from the start.
    with tempfile.NamedTemporaryFile(
        dir=file.parent, prefix=f'.{file.name}.', delete=False
    ) as made:
        try:
            yield typing.cast('typing.IO[bytes]', made)
            made.flush()
            os.fsync(made.fileno())
            os.replace(made.name, file)
        except BaseException:
            os.unlink(made.name)
            raise


def _add_function(tar: tarfile.TarFile, function: sysfs.Function) -> None:
    tree = function.tree
    place = function.path.relative_to(tree.root)
    _add_link(tar, sysfs.DEVICES / function.bdf, place)
    for name in ATTRIBUTES:
        text = function.read(name)
        if text is not None:
            _add_file(tar, place / name, f'{text}\n'.encode())
    for name in tree.names(function.path):
        target = tree.inside(function.path / name)
        if target and re.fullmatch(r'physfn|virtfn\d+', name):
            _add_link(tar, place / name, target.relative_to(tree.root))
    _add_names(tar, function, place)


def _add_names(tar: tarfile.TarFile, function: sysfs.Function, place: pathlib.PurePath) -> None:
    """Add links whose names matter: their targets are not copied."""
    for name, home in NAMED.items():
        if target_name := function.link(name):
            _add_link(tar, place / name, home / target_name)
    # Mediated devices are named by UUIDs: only their number of each type is recorded.
    types = (device.partition('/')[0] for device in function.mediated_devices)
    for kind, count in collections.Counter(types).items():
        for number in range(count):
            name = f'mdev_supported_types/{kind}/devices/{number}'
            _add_file(tar, place / name, b'')


def _add_directory(tar: tarfile.TarFile, path: pathlib.PurePath) -> None:
    info = tarfile.TarInfo(str(path))
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(info)


def _add_file(tar: tarfile.TarFile, path: pathlib.PurePath, content: bytes) -> None:
    info = tarfile.TarInfo(str(path))
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _add_link(tar: tarfile.TarFile, path: pathlib.PurePath, target: pathlib.PurePath) -> None:
    info = tarfile.TarInfo(str(path))
    info.type, info.linkname = tarfile.SYMTYPE, os.path.relpath(target, path.parent)
    tar.addfile(info)
