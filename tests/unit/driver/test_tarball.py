# SPDX-License-Identifier: Apache-2.0
"""Malicious tarballs, which write outside or exhaust memory."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import pathlib
import tarfile
import tracemalloc
import zlib

import pytest

from cyborg_lite import driver
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import recording
from cyborg_lite.driver import tarball

END = bytes(1024)
DEVICES = 'sys/bus/pci/devices'


def header(name='x', kind=tarfile.REGTYPE, size=0, link='', magic=b'ustar  \x00'):
    """A raw header: tarfile cannot write all of these."""
    block = bytearray(512)
    block[0:100] = os.fsencode(name)[:100].ljust(100, b'\0')
    block[100:124] = b'0000644\0' * 3
    octal = f'{size:011o}'.encode() + b'\0'
    if not 0 <= size < 8**11:
        octal = (b'\xff' if size < 0 else b'\x80') + size.to_bytes(11, 'big', signed=True)
    block[124:148] = octal + b'0' * 11 + b'\0'
    block[156:157] = kind
    block[157:257] = os.fsencode(link)[:100].ljust(100, b'\0')
    block[257:265] = magic
    block[148:156] = b' ' * 8
    block[148:156] = f'{sum(block):06o}\0 '.encode()
    return bytes(block)


def member(name='x', kind=tarfile.REGTYPE, content=b'', **more):
    padding = bytes(-len(content) % 512)
    return header(name, kind, len(content), **more) + content + padding


def longer(kind, text):
    return member('././@LongLink', kind, os.fsencode(text) + b'\0')


def pax(**records):
    content = b''
    for key, value in records.items():
        text = f' {key.replace("__", ".")}={value}\n'.encode()
        length = len(text)
        while len(str(length)) + len(text) != length:
            length = len(str(length)) + len(text)
        content += str(length).encode() + text
    return member('x', tarfile.XHDTYPE, content)


HOST = member(f'{DEVICES}/', tarfile.DIRTYPE) + member('sys/file', content=b'kept')


@pytest.fixture
def unpack(tmp_path):
    """Unpack these parts; returns the directory."""

    def unpack_(*parts, name='evil.tar'):
        (tmp_path / name).write_bytes(b''.join(parts))
        return hosts.find(str(tmp_path / name), tmp_path / 'work').root

    return unpack_


def tree(root):
    """The tree: directories as None, files with their content, links with their targets."""
    found = {}
    for path in sorted(root.rglob('*')):
        link = f'-> {os.readlink(path)}' if path.is_symlink() else None
        content = link or (None if path.is_dir() else path.read_bytes())
        found[str(path.relative_to(root))] = content
    return found


KEPT = {'sys': None, 'sys/bus': None, 'sys/bus/pci': None, DEVICES: None, 'sys/file': b'kept'}


@pytest.mark.parametrize(
    ('name', 'pack'),
    [
        ('a.tar', bytes),
        ('a.tar.gz', gzip.compress),
        ('a.tar.bz2', bz2.compress),
        ('a.tar.xz', lzma.compress),
    ],
)
def test_each_compression(unpack, name, pack):
    assert tree(unpack(pack(HOST + END), name=name)) == KEPT


@pytest.mark.parametrize('pack', [gzip.compress, bz2.compress, lzma.compress])
def test_several_streams(unpack, pack):
    """Parallel compressors write several; zeros may pad the last block."""
    whole = HOST + END
    parts = [whole[n : n + 700] for n in range(0, len(whole), 700)]
    packed = b''.join(map(pack, parts))
    assert tree(unpack(packed + bytes(512), name='a.tar')) == KEPT
    assert tree(unpack(packed + b'something else', name='b.tar')) == KEPT


@pytest.mark.parametrize('pack', [gzip.compress, bz2.compress, lzma.compress])
def test_streams_are_bounded(unpack, pack, monkeypatch):
    """4 MB of empty ones cost 12 s."""
    monkeypatch.setattr(tarball, 'STREAMS', 8)
    with pytest.raises(driver.HostError, match='more than 8 compressed streams'):
        unpack(pack(HOST) + pack(b'') * 9, name='a.tar')


def test_compressed_data_is_bounded(unpack, monkeypatch):
    """The name in a header of gzip has no end of its own."""
    monkeypatch.setattr(tarball, 'COMPRESSED', 1 << 20)
    endless = b'\x1f\x8b\x08\x08' + bytes(6) + b'n' * (2 << 20)
    with pytest.raises(driver.HostError, match='more than 1 MiB of compressed data'):
        unpack(endless, name='a.tar')


@pytest.mark.parametrize('format_', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tarballs_of_tarfile(unpack, format_):
    """Names of more than 100 bytes stand elsewhere in each format."""
    deep = f'sys/devices/{"p" * 60}/{"q" * 60}/file'
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w', format=format_) as tar:
        for name, kind, link in [
            (DEVICES, tarfile.DIRTYPE, ''),
            (deep, tarfile.REGTYPE, ''),
            ('sys/é', tarfile.REGTYPE, ''),
            ('sys/link', tarfile.SYMTYPE, f'devices/{"p" * 60}'),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, 3 * (kind == tarfile.REGTYPE)
            tar.addfile(info, io.BytesIO(b'abc'))
    found = tree(unpack(buffer.getvalue()))
    assert found[deep] == found['sys/é'] == b'abc'
    assert found['sys/link'] == f'-> devices/{"p" * 60}'


def test_long_names_of_gnu(unpack):
    name, target = f'sys/{"a" * 99}/{"b" * 99}', f'{"a" * 99}/{"b" * 99}'
    found = tree(
        unpack(
            HOST,
            longer(tarfile.GNUTYPE_LONGNAME, name) + member('sys/cut', content=b'1'),
            longer(tarfile.GNUTYPE_LONGLINK, target),
            longer(tarfile.GNUTYPE_LONGNAME, 'sys/link'),
            member('sys/cut', tarfile.SYMTYPE, link='cut'),
            member('sys/short', content=b'2'),
        )
    )
    assert (found[name], found['sys/link'], found['sys/short']) == (b'1', f'-> {target}', b'2')


def test_extended_headers(unpack):
    found = tree(
        unpack(
            HOST,
            pax(path='sys/other', size='3', mtime='1.5') + header('sys/x') + b'abc' + bytes(509),
            member('sys/next', content=b'2'),
        )
    )
    assert (found['sys/other'], found['sys/next']) == (b'abc', b'2')


OUTSIDE = [
    member('/tmp/canary-4517', content=b'evil'),
    member('../canary-4517', content=b'evil'),
    member('sys/../../canary-4517', content=b'evil'),
    member('..', tarfile.DIRTYPE) + member('../../canary-4517', content=b'evil'),
    # Files through links, the links before and after.
    member('up', tarfile.SYMTYPE, link='..') + member('up/canary-4517', content=b'evil'),
    member('a/up', tarfile.SYMTYPE, link='../..') + member('a/up/canary-4517', content=b'evil'),
    member('to', tarfile.SYMTYPE, link='/tmp') + member('to/canary-4517', content=b'evil'),
    member('canary-4517', tarfile.SYMTYPE, link='../../canary-4517')
    + member('canary-4517', content=b'evil'),
    # A link goes down to where another goes up again, and then further up.
    member('a/b/l', tarfile.SYMTYPE, link='../..')
    + member('m', tarfile.SYMTYPE, link='a/b/l/..')
    + member('m/canary-4517', content=b'evil'),
    member('a/b/l', tarfile.SYMTYPE, link='../..')
    + member('m', tarfile.SYMTYPE, link='a/b/l/../..')
    + member('n', tarfile.SYMTYPE, link='m/canary-4517')
    + member('n', content=b'evil'),
    # Hard links: to read what is outside, and to write to it.
    member('hard', tarfile.LNKTYPE, link='../../canary-4517') + member('hard', content=b'evil'),
    member('hard', tarfile.LNKTYPE, link='/etc/passwd'),
    member('up', tarfile.SYMTYPE, link='..')
    + member('hard', tarfile.LNKTYPE, link='up/canary-4517'),
    # The name in a header of its own.
    longer(tarfile.GNUTYPE_LONGNAME, '../canary-4517') + member('sys/x', content=b'evil'),
    longer(tarfile.GNUTYPE_LONGLINK, '../..')
    + member('up', tarfile.SYMTYPE, link='sys')
    + member('up/canary-4517', content=b'evil'),
    pax(path='../canary-4517') + member('sys/x', content=b'evil'),
    pax(path='/tmp/canary-4517') + member('sys/x', content=b'evil'),
    pax(linkpath='..') + member('up', tarfile.SYMTYPE, link='sys'),
    # Devices and pipes.
    member('sys/zero', tarfile.CHRTYPE),
    member('sys/disk', tarfile.BLKTYPE),
    member('sys/pipe', tarfile.FIFOTYPE),
    # No names at all.
    member('.', content=b'evil') + member('/', tarfile.DIRTYPE) + member('', content=b'evil'),
    pax(path='sys/' + 'n' * 300) + member('sys/x', content=b'evil'),
    pax(path='sys/a\0b') + member('sys/x', content=b'evil'),
    pax(linkpath='a\0b') + member('l', tarfile.SYMTYPE, link='sys'),
    pax(linkpath='a/' * 2100) + member('l', tarfile.SYMTYPE, link='sys'),
    pax(path='d/' * 300 + 'x') + member('sys/x', content=b'evil'),
    member('l', tarfile.SYMTYPE, link=''),
]


@pytest.mark.parametrize('number', range(len(OUTSIDE)))
def test_nothing_is_written_or_named_outside(unpack, tmp_path, number):
    canaries = [
        tmp_path / 'canary-4517',
        tmp_path / 'work/canary-4517',
        pathlib.Path('/tmp/canary-4517'),
    ]
    (tmp_path / 'work').mkdir()
    before = set(tmp_path.rglob('*'))
    try:
        root = unpack(OUTSIDE[number], HOST)
    except driver.HostError:
        root = None
    assert not any(path.exists() for path in canaries)
    made = set(tmp_path.rglob('*')) - before - {tmp_path / 'evil.tar'}
    if root is None:
        assert made == set()
        return
    assert tree(root).items() >= KEPT.items()
    for path in made - {root}:
        assert path.is_relative_to(root)
        assert path.is_symlink() or path.is_dir() or path.is_file()
        assert path.is_dir() or path.lstat().st_nlink == 1
        # The target is below the root, whether it exists or not.
        assert pathlib.Path(os.path.realpath(path)).is_relative_to(root)


def test_links_longer_than_realpath_follows(unpack, tmp_path):
    """CVE-2025-4517: beyond PATH_MAX realpath() stops to resolve, and the filter was misled."""
    parts, step, place = [], 'd' * 247, ''
    for letter in 'abcdefghijklmnop':
        parts.append(pax(path=f'{place}{step}') + member('x', tarfile.DIRTYPE))
        parts.append(
            pax(path=f'{place}{letter}', linkpath=step) + member('x', tarfile.SYMTYPE, link='x')
        )
        place += f'{step}/'
    chain = '/'.join('abcdefghijklmnop')
    link = f'{chain}/{"l" * 254}'
    parts.append(pax(path=link, linkpath='../' * 16) + member('x', tarfile.SYMTYPE, link='x'))
    parts.append(pax(path='escape', linkpath=f'{link}/../canary') + member('x', tarfile.SYMTYPE))
    parts.append(member('hard', tarfile.LNKTYPE, link='escape'))
    parts.append(member('escape', content=b'evil'))
    parts.append(member('hard', content=b'evil'))
    (tmp_path / 'canary').write_text('untouched')
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work/canary').write_text('untouched')
    root = unpack(HOST, *parts)
    assert (tmp_path / 'canary').read_text() == 'untouched'
    assert (tmp_path / 'work/canary').read_text() == 'untouched'
    assert sorted(os.listdir(tmp_path / 'work')) == ['canary', 'evil']
    assert not (root / 'escape').is_symlink()


def test_the_first_of_two_equal_members_is_kept(unpack):
    found = tree(
        unpack(
            HOST,
            member('sys/file', content=b'second'),
            member('sys/file', tarfile.SYMTYPE, link='bus'),
            member('sys/file/below', content=b'third'),
            member('sys/file', tarfile.DIRTYPE),
            member('sys', content=b'a file'),
            member('sys/l', tarfile.SYMTYPE, link='bus'),
            member('sys/l', tarfile.SYMTYPE, link='file'),
        )
    )
    assert found == KEPT | {'sys/l': '-> bus'}


def test_links_of_sysfs_are_kept(unpack):
    kept = {
        f'{DEVICES}/0000:01:00.0': '../../../devices/pci0000:00/0000:01:00.0',
        'sys/devices/pci0000:00/0000:01:00.1/physfn': '../0000:01:00.0',
        'sys/devices/pci0000:00/0000:01:00.0/driver': '../../../bus/pci/drivers/qat',
        'sys/all': '.',
    }
    links = [pax(path=k, linkpath=v) + member('x', tarfile.SYMTYPE) for k, v in kept.items()]
    found = tree(unpack(*links, HOST))
    assert {k: v for k, v in found.items() if v and not isinstance(v, bytes)} == {
        k: f'-> {v}' for k, v in kept.items()
    }


def test_members_too_deep_are_left_out(unpack):
    parts = ['sys', *'d' * (recording.LEVELS - 2), 'kept']
    deepest, deeper = '/'.join(parts), '/'.join(['sys', *'e' * (recording.LEVELS - 1), 'left'])
    found = tree(unpack(HOST, *[pax(path=p) + member('x') for p in (deepest, deeper)]))
    assert found[deepest] == b''
    assert not any(name.startswith('sys/e') for name in found)


def test_unpacked_files_are_readable_for_the_user_only(unpack):
    for path in unpack(HOST).rglob('*'):
        assert path.stat().st_mode & 0o077 == 0


GIB = 1 << 30
BOMBS = {
    'long name': header('././@LongLink', tarfile.GNUTYPE_LONGNAME, GIB),
    'long link': header('././@LongLink', tarfile.GNUTYPE_LONGLINK, GIB),
    'extended header': header('x', tarfile.XHDTYPE, GIB),
    'name of half a megabyte': header('././@LongLink', tarfile.GNUTYPE_LONGNAME, 1 << 19),
    'header of half a megabyte': header('x', tarfile.XHDTYPE, 1 << 19),
    'extended header of Solaris': header('x', tarfile.SOLARIS_XHDTYPE, GIB),
    'global header': header('x', tarfile.XGLTYPE, GIB),
    'file': header('sys/x', size=GIB),
    'file of 2**80 bytes': header('sys/x', size=2**80),
    'left out': header('../x', size=GIB),
    'of an unknown type': header('sys/x', b'Q', GIB),
    'extended size': pax(size=str(GIB)) + header('sys/x'),
    'size of many digits': pax(size='9' * 5000) + header('sys/x'),
    'negative size': pax(size='-512') + header('sys/x'),
    'negative size of GNU': header('sys/x', size=-512),
    'sparse': header('sys/x', tarfile.GNUTYPE_SPARSE),
    'sparse of pax': pax(GNU__sparse__major='1', GNU__sparse__realsize=str(2**60)) + header('s'),
    'broken record': member('x', tarfile.XHDTYPE, b'99 path=sys/x\n') + member('x'),
    'record of no length': member('x', tarfile.XHDTYPE, b'0 path=x\n') + member('x'),
    'no record': member('x', tarfile.XHDTYPE, b'path') + member('x'),
}


@pytest.fixture
def reads(monkeypatch):
    """The sizes of reads of decompressed data."""
    sizes, opened = [], tarball.opened

    class Counted:
        def __init__(self, stream):
            self._stream = stream

        def read(self, size=-1):
            sizes.append(size)
            return self._stream.read(size)

    @contextlib.contextmanager
    def counted(file):
        with opened(file) as stream:
            yield Counted(stream)

    monkeypatch.setattr(tarball, 'opened', counted)
    return sizes


@pytest.mark.parametrize('bomb', BOMBS)
def test_a_size_is_refused_before_it_is_read(unpack, reads, bomb):
    packed = gzip.compress(HOST + BOMBS[bomb] + bytes(1 << 20))
    with pytest.raises(driver.HostError, match='cannot be unpacked: '):
        unpack(packed, name='bomb.tar.gz')
    assert min(reads) >= 0
    assert max(reads) <= 1 << 16
    assert sum(reads) < 1 << 16


def test_memory_does_not_grow_with_the_content(unpack, monkeypatch):
    """5 MB of gzip took 1 GB."""
    monkeypatch.setattr(recording, 'SIZE', 1 << 40)
    start = HOST + header('sys/x', size=64 << 20)
    packed = gzip.compress(start + bytes(64 << 20) + END, 1)
    tracemalloc.start()
    root = unpack(packed, name='bomb.tar.gz')
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (root / 'sys/x').stat().st_size == 64 << 20
    assert peak < 4 << 20


def test_headers_without_a_member_pile_up_nowhere(unpack, monkeypatch):
    """Any number of headers may come before a member."""
    wide = '\N{SNOWMAN}' + 'v' * 4000
    many = [pax(**{f'key{number}': wide}) for number in range(2000)]
    packed = gzip.compress(HOST + b''.join(many) + header('sys/x') + END, 1)
    tracemalloc.start()
    root = unpack(packed, name='bomb.tar.gz')
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (root / 'sys/x').exists()
    assert peak < 4 << 20


def test_all_members_together_are_bounded(unpack, monkeypatch):
    monkeypatch.setattr(recording, 'SIZE', 4096)
    for many in (
        [member(f'sys/{n}', content=bytes(512)) for n in range(9)],
        [longer(tarfile.GNUTYPE_LONGNAME, 'n' * 500)] * 9,
        [pax(comment='c' * 900)] * 9,
    ):
        with pytest.raises(driver.HostError, match='more than 30000 files or 0 MiB'):
            unpack(HOST, *many, member('sys/last'))


@pytest.mark.parametrize(
    'many',
    [
        [member(f'sys/{n}') for n in range(9)],
        [member('sys/same')] * 9,
        [member('../out')] * 9,
        [longer(tarfile.GNUTYPE_LONGNAME, 'n')] * 9,
        [pax(path='n')] * 9,
        [member('sys/a/b/c/d/e/f/g/h/i/j')],
        [member('sys/l', tarfile.SYMTYPE, link='bus')] * 9,
    ],
)
def test_there_are_not_too_many(unpack, monkeypatch, many):
    monkeypatch.setattr(recording, 'MEMBERS', 8)
    with pytest.raises(driver.HostError, match='more than 8 files'):
        unpack(HOST, *many, member('sys/last'))


def test_links_are_kept_in_memory_up_to_a_bound(unpack, monkeypatch):
    monkeypatch.setattr(recording, 'LINKS', 1 << 10)
    links = [member(f'sys/{n}', tarfile.SYMTYPE, link='t' * 90) for n in range(12)]
    with pytest.raises(driver.HostError, match='of links'):
        unpack(HOST, *links)


def test_xz_with_a_large_dictionary(unpack):
    """The header makes the decompressor allocate the memory."""
    filters = [{'id': lzma.FILTER_LZMA2, 'preset': 0, 'dict_size': 1 << 20}]
    small = lzma.compress(HOST + END, filters=filters)
    assert tree(unpack(small, name='a.tar.xz')) == KEPT
    # The byte of the dictionary's size, and the header's checksum after it.
    large = bytearray(small)
    at = large.index(b'\x21\x01', 12) + 2
    large[at] = 40
    size = (large[12] + 1) * 4
    large[12 + size - 4 : 12 + size] = zlib.crc32(large[12 : 12 + size - 4]).to_bytes(4, 'little')
    with pytest.raises(driver.HostError, match='[Mm]emory'):
        unpack(bytes(large), name='b.tar.xz')


@pytest.mark.parametrize('pack', [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize('keep', [0.1, 0.5, 0.9])
def test_cut_short(unpack, pack, keep):
    packed = pack(HOST + member('sys/x', content=os.urandom(4096)))
    with pytest.raises(driver.HostError):
        unpack(packed[: int(len(packed) * keep)], name='cut.tar')
