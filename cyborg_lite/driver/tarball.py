# SPDX-License-Identifier: Apache-2.0
"""Read an untrusted tarball, one member at a time, in bounded memory.

tarfile reads a long name or an extended header at once, whatever its declared length, and xz may
require a dictionary of any size.  Here each size is compared with a limit before the read.

Source: pax(1) of POSIX.1-2017, "pax Interchange Format" and "ustar Interchange Format"; GNU tar
manual, "Basic Tar Format".
"""

from __future__ import annotations

import bz2
import collections.abc
import contextlib
import io
import lzma
import pathlib
import re
import tarfile
import typing
import zlib

#: The maximum size of one read, in bytes.
CHUNK = 1 << 16
#: The maximum length of a name or a link's target, in bytes, as in Linux.
NAME = 4096
#: The maximum size of a member's extended header, in bytes.
EXTENDED = 1 << 14
#: The maximum memory of xz: its highest preset needs 65 MiB.
XZ_MEMORY = 80 << 20

#: The maximum size of compressed data, in bytes, and of its streams: bgzip makes a stream for each
#: 64 KiB.
COMPRESSED, STREAMS = 1 << 28, 8192

#: Source: the magic numbers in RFC 1952, bzip2's format and the .xz file format.
GZIP, BZIP2, XZ = b'\x1f\x8b', b'BZh', b'\xfd7zXZ\x00'
#: The start of a record in an extended header: its length, and its keyword.
RECORD = re.compile(rb'(?P<length>[0-9]{1,5}) (?P<key>[^=]+)=')

Bytes = typing.IO[bytes]


@contextlib.contextmanager
def opened(file: pathlib.Path) -> collections.abc.Iterator[Bytes]:
    """The file's content, decompressed while it is read."""
    with file.open('rb') as raw:
        magic = raw.peek(len(XZ))
        kind = next((known for known in DECOMPRESSORS if magic.startswith(known)), None)
        stream: typing.Any = io.BufferedReader(_Decompressed(raw, kind)) if kind else raw
        with stream:
            yield stream


class _Gzip:
    """zlib's decompressor, with the methods of those of bz2 and lzma."""

    def __init__(self) -> None:
        # 16 more than the largest window: the data have a gzip header and a checksum.
        self._zlib = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


#: The decompressors by the first bytes of a file.
DECOMPRESSORS: dict[bytes, collections.abc.Callable[[], typing.Any]] = {
    GZIP: _Gzip,
    BZIP2: bz2.BZ2Decompressor,
    XZ: lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY),
}


class _Decompressed(io.RawIOBase):
    """Reads all compressed streams in turn: parallel compressors write many.

    The standard modules for files have no limits of streams, compressed bytes or memory.
    """

    def __init__(self, raw: Bytes, kind: bytes) -> None:
        self._raw, self._kind = raw, kind
        self._streams = self._taken = 0
        self._begin()
        #: data that were read ahead, of the next stream
        self._ahead = b''

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: typing.Any) -> int:
        part = b''
        while not part and not (self._current.eof and not self._continue()):
            more = self._more() if self._current.needs_input else b''
            part = self._current.decompress(more, len(buffer))
        buffer[: len(part)] = part
        return len(part)

    def _begin(self) -> None:
        self._streams += 1
        if self._streams > STREAMS:
            raise tarfile.ReadError(f'more than {STREAMS} compressed streams')
        self._current = DECOMPRESSORS[self._kind]()

    def _continue(self) -> bool:
        """Begin the next stream, if there is one; other data at the end are not read."""
        ahead = self._current.unused_data
        # An archive may be padded with zeros to a whole block.
        while not (ahead := ahead.lstrip(b'\0')):
            if not (ahead := self._load()):
                return False
        while len(ahead) < len(self._kind) and (more := self._load()):
            ahead += more
        if not ahead.startswith(self._kind):
            return False
        self._ahead = ahead
        self._begin()
        return True

    def _more(self) -> bytes:
        ahead, self._ahead = self._ahead or self._load(), b''
        if not ahead:
            raise EOFError('the compressed data is cut short')
        return ahead

    def _load(self) -> bytes:
        part = self._raw.read(CHUNK)
        self._taken += len(part)
        if self._taken > COMPRESSED:
            raise tarfile.ReadError(f'more than {COMPRESSED >> 20} MiB of compressed data')
        return part


class Reader:
    """The members of a tarball, in their order.

    :param members: the maximum number of headers
    :param size: the maximum size of all members together, in bytes
    """

    def __init__(self, stream: Bytes, members: int, size: int) -> None:
        self._stream = stream
        self._limits = members, size
        self._members = self._size = 0
        #: the unread bytes of the current member, and of the padding of its last block
        self._unread = self._padding = 0

    def __iter__(self) -> collections.abc.Iterator[tarfile.TarInfo]:
        """Each member.  Unread content is skipped.

        :raises tarfile.ReadError: when the tarball is broken, exceeds a limit, or has sparse
            files.
        """
        extended: dict[str, str] = {}
        while member := self._header():
            if member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                key = 'path' if member.type == tarfile.GNUTYPE_LONGNAME else 'linkpath'
                extended[key] = _text(self._whole(member, NAME).partition(b'\0')[0])
            elif member.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                extended |= _of_use(_records(self._whole(member, EXTENDED)))
            elif member.type == tarfile.XGLTYPE:
                # git writes a comment here.
                self._whole(member, EXTENDED)
            else:
                self._enter(member, extended)
                extended = {}
                yield member
                for _ in self.content():
                    pass

    def content(self) -> collections.abc.Iterator[bytes]:
        """The unread content of the current member, in parts."""
        while self._unread:
            part = self._read(min(CHUNK, self._unread))
            self._unread -= len(part)
            yield part
        self._read(self._padding)
        self._padding = 0

    def _header(self) -> tarfile.TarInfo | None:
        """The next header; None at the end."""
        block = self._stream.read(tarfile.BLOCKSIZE)
        if not block.strip(b'\0'):
            return None
        self._members += 1
        return tarfile.TarInfo.frombuf(block, 'utf-8', 'surrogateescape')

    def _enter(self, member: tarfile.TarInfo, extended: dict[str, str]) -> None:
        """Begin to read a member, after its headers."""
        if member.type == tarfile.GNUTYPE_SPARSE or any(
            k.startswith('GNU.sparse') for k in extended
        ):
            raise tarfile.ReadError('sparse files are not taken')
        member.name = extended.get('path', member.name)
        member.linkname = extended.get('linkpath', member.linkname)
        if 'size' in extended:
            member.size = _number(extended['size'])
        # A directory, link or device has no content, whatever its size field.
        known = member.type in tarfile.SUPPORTED_TYPES and not member.isreg()
        self._begin(0 if known else member.size)

    def _begin(self, size: int) -> None:
        """Count a size against the limits before the read."""
        if size < 0:
            raise tarfile.ReadError('a size is negative')
        self._size += size
        members, most = self._limits
        if self._members > members or self._size > most:
            raise tarfile.ReadError(f'more than {members} files or {most >> 20} MiB')
        self._unread, self._padding = size, -size % tarfile.BLOCKSIZE

    def _whole(self, header: tarfile.TarInfo, limit: int) -> bytes:
        """The whole content of a header."""
        if header.size > limit:
            raise tarfile.ReadError(f'a header of {header.size} bytes: expected up to {limit}')
        self._begin(header.size)
        return b''.join(self.content())

    def _read(self, size: int) -> bytes:
        part = self._stream.read(size)
        if len(part) < size:
            raise tarfile.ReadError('it is cut short')
        return part


def _records(content: bytes) -> dict[str, str]:
    """The records of an extended header."""
    found: dict[str, str] = {}
    start = 0
    while start < len(content):
        match = RECORD.match(content, start)
        end = start + int(match['length']) if match else 0
        if not match or not match.end() < end <= len(content) or content[end - 1] != ord('\n'):
            raise tarfile.ReadError('an extended header is broken')
        found[_text(match['key'])] = _text(content[match.end() : end - 1])
        start = end
    return found


def _of_use(records: dict[str, str]) -> dict[str, str]:
    """The records that matter: any number of headers may come before a member."""
    kept = {key: value for key, value in records.items() if key in ('path', 'linkpath', 'size')}
    sparse = any(key.startswith('GNU.sparse') for key in records)
    return kept | ({'GNU.sparse': ''} if sparse else {})


def _text(content: bytes) -> str:
    return content.decode('utf-8', 'surrogateescape')


def _number(text: str) -> int:
    if not re.fullmatch('[0-9]{1,15}', text):
        raise tarfile.ReadError(f'a size is {text!r:.64}: expected a number')
    return int(text)
