# SPDX-License-Identifier: Apache-2.0
"""Hosts copied: what drivers read of a machine, packed for a bug report, and unpacked again."""

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

#: What is copied of a function.  Not its configuration space or vital product data, which hold
#: serial numbers; nor, of the machine, its id or that of its mainboard.
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
#: Links of a function that tell by the name of what they lead to, and where that is.
NAMED = {
    'driver': pathlib.PurePath('sys/bus/pci/drivers'),
    'iommu_group': pathlib.PurePath('sys/kernel/iommu_groups'),
}
#: What is named of /dev: the nodes of accelerators.
NODES = re.compile(
    r'(v?davinci|nvidia|accel|hl)\d+|davinci_manager|devmm_svm|hisi_hdc|nvidiactl|kfd|(dfl|qat)\S+'
)
#: The most that a tarball may hold.
MEMBERS = 30_000
SIZE = 1 << 28
#: The most text that links may have, in characters: it is kept until all else is there.
LINKS = 1 << 25
#: How deep below its root a member may be.
LEVELS = 64
#: The longest component of a name, in bytes: that of Linux.
COMPONENT = 255
#: What keeps a member out: something else is in its place, or above it.
UNFIT = (FileExistsError, IsADirectoryError, NotADirectoryError)
#: A directory, and not what a link leads to.
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: How deep below a directory its sys/ may be.
DEPTH = 5


def locate(path: pathlib.Path) -> pathlib.Path:
    """The directory that holds sys/: this one, or the nearest below it.

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
    """Unpack a tarball that nobody vouches for, below an empty directory.

    Only directories, regular files and symbolic links are made, and only those that cannot lead
    out of the directory.  Everything else is left out, and so is what is in the place of another.

    :raises HostError: when it is no tarball, or too large a one.
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
    # Links come last: as long as there is none, no name leads through one.
    for place, text in links:
        with contextlib.suppress(*UNFIT):
            target.link(place, text)


def _place(name: str) -> list[str] | None:
    """The components of a member's name; None where it may lead out, or cannot be made."""
    parts = _components(name)
    long = any(len(os.fsencode(part)) > COMPONENT for part in parts)
    if name.startswith('/') or '\0' in name or '..' in parts or long or len(parts) > LEVELS:
        return None
    return parts or None


def _leads_inside(place: list[str], text: str) -> bool:
    """Whether the target of a link at that place is below the root, by its text alone.

    ``..`` may stand at the start only: there it goes up from a directory, later from a link.
    """
    parts = _components(text)
    up = len(list(itertools.takewhile('..'.__eq__, parts)))
    if text.startswith('/') or '\0' in text or not 0 < len(os.fsencode(text)) < tarball.NAME:
        return False
    return up < len(place) and '..' not in parts[up:]


def _components(path: str) -> list[str]:
    return [part for part in path.split('/') if part not in ('', '.')]


class _Target(contextlib.ExitStack):
    """The directory below which a tarball is unpacked.

    Each component of a name is opened by itself, and no link is followed.
    """

    def __init__(self, root: pathlib.Path) -> None:
        super().__init__()
        self._root = os.open(root, DIRECTORY)
        self.callback(os.close, self._root)
        self._made = 0

    def write(self, place: list[str], content: collections.abc.Iterable[bytes] | None) -> None:
        """Make a file; a directory where there is no content."""
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
        """A directory, made where it is missing."""
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
    """Pack what drivers read of a host: PCI functions, names in /dev, what tools printed, and
    whatever else they asked the tree for.

    What they ran and asked is known of this very object: let them discover before.

    :param file: the tarball to write, gzip; only the user may read it
    :param with_serials: keep what tells of one card, machine or user in what tools printed
    :raises HostError: when something else than a file is in its place.
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
    """The texts of the files that drivers asked for, beside the attributes in ``ATTRIBUTES``."""
    names, functions = tree.attributes - {*ATTRIBUTES}, tree.functions()
    of_functions = {f.path.relative_to(tree.root) / name for f in functions for name in names}
    places = tree.read | of_functions
    texts = {str(place): tree.text(place) for place in sorted(places)}
    return {place: text for place, text in texts.items() if text is not None}


def _listed(tree: sysfs.Tree) -> set[str]:
    """What is in the directories that drivers listed, by path."""
    places = (place / name for place in tree.listed for name in tree.names(tree.root / place))
    return {str(place) for place in places if tree.inside(tree.root / place)}


@contextlib.contextmanager
def _replaced(file: pathlib.Path) -> collections.abc.Iterator[typing.IO[bytes]]:
    """A file that takes this place once it is complete.  A link in the place is not followed."""
    if file.exists() and not file.is_symlink() and not file.is_file():
        raise description.HostError(f'{file} is in the way: expected a file, or nothing')
    if not file.parent.is_dir():
        raise description.HostError(f'{file}: there is no directory {file.parent}')
    # Its mode is 0600 from the start.
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
    """Add what tells by its name: what it leads to is not copied."""
    for name, home in NAMED.items():
        if target_name := function.link(name):
            _add_link(tar, place / name, home / target_name)
    # Mediated devices are named by UUIDs: how many there are of each type is enough.
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
