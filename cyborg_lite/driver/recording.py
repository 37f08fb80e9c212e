# SPDX-License-Identifier: Apache-2.0
"""Hosts copied: what drivers read of a machine, packed for a bug report, and unpacked again."""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import pathlib
import re
import tarfile
import typing
import zlib

from cyborg_lite.driver import description
from cyborg_lite.driver import sysfs

if typing.TYPE_CHECKING:
    from cyborg_lite.driver import host as hosts

#: What is copied of a function.  Not its configuration space or vital product data, which hold
#: serial numbers.
ATTRIBUTES = (
    'class',
    'device',
    'nvidia/creatable_vgpu_types',
    'numa_node',
    'revision',
    'sriov_numvfs',
    'sriov_totalvfs',
    'subsystem_device',
    'subsystem_vendor',
    'vendor',
)
#: What is named of /dev: the nodes of accelerators.
NODES = re.compile(
    r'(v?davinci|nvidia|accel|hl)\d+|davinci_manager|devmm_svm|hisi_hdc|nvidiactl|kfd|(dfl|qat)\S+'
)
#: The most that a tarball may hold.
MEMBERS = 200_000
SIZE = 1 << 28
#: Members that stay out: refused by the filter, or in the place of another.
UNFIT = (tarfile.FilterError, KeyError, FileExistsError, IsADirectoryError, NotADirectoryError)
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
    """Unpack a tarball that nobody vouches for.

    Device nodes, pipes and whatever leads out of the directory are left out.

    :raises HostError: when it is no tarball, or too large a one.
    """
    size = 0
    try:
        with tarfile.open(file) as tar:
            for number, member in enumerate(tar):
                size += member.size
                if number >= MEMBERS or size > SIZE:
                    raise tarfile.ReadError(f'more than {MEMBERS} files or {SIZE >> 20} MiB')
                with contextlib.suppress(*UNFIT):
                    tar.extract(member, root, filter='data')
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise description.HostError(f'{file}: cannot be unpacked: {error}') from error


def record(host: hosts.Host, file: pathlib.Path) -> None:
    """Pack what drivers read of a host: PCI functions, names in /dev, and what tools printed.

    The tools are those that drivers have run on this very object: let them discover before.

    :param file: the tarball to write, gzip
    """
    tree = host.tree
    with tarfile.open(file, 'w:gz') as tar:
        _add_directory(tar, sysfs.DEVICES)
        for function in tree.functions():
            place = function.path.relative_to(tree.root)
            _add_link(tar, sysfs.DEVICES / function.bdf, place)
            for name in ATTRIBUTES:
                text = function.read(name)
                if text is not None:
                    _add_file(tar, place / name, f'{text}\n'.encode())
            for name in tree.names(function.path):
                target = tree.inside(function.path / name)
                if target and re.fullmatch(r'physfn|virtfn\d+|driver', name):
                    _add_link(tar, place / name, target.relative_to(tree.root))
        for name in filter(NODES.fullmatch, tree.names(tree.root / 'dev')):
            _add_file(tar, pathlib.PurePath('dev', name), b'')
        for (tool, *args), text in host.outputs.items():
            _add_file(tar, description.output(tool, args), text.encode())


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
