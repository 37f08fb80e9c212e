# SPDX-License-Identifier: Apache-2.0
"""Read a tarball that nobody vouches for, one member at a time, in bounded memory.

tarfile reads a long name or an extended header at once, however long the archive says that it
is, and xz may ask for any dictionary.  Here each size is compared with a limit before anything
of that size is read.

Source: pax(1) of POSIX.1-2017, "pax Interchange Format" and "ustar Interchange Format"; GNU tar
manual, "Basic Tar Format".
"""

from __future__ import annotations

import bz2
import collections.abc
import contextlib
import gzip
import io
import lzma
import pathlib
import re
import tarfile
import typing

#: The most that is read at once, in bytes.
CHUNK = 1 << 16
#: The longest name or target of a link, in bytes: that of Linux.
NAME = 4096
#: The most that a member's extended header may have, in bytes.
EXTENDED = 1 << 14
#: The most memory that xz may take: its highest preset needs 65 MiB.
XZ_MEMORY = 80 << 20

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
        if magic.startswith(GZIP):
            stream: typing.Any = gzip.GzipFile(fileobj=raw)
        elif magic.startswith(BZIP2):
            stream = bz2.BZ2File(raw)
        elif magic.startswith(XZ):
            stream = io.BufferedReader(_Xz(raw))
        else:
            stream = raw
        with stream:
            yield stream


class _Xz(io.RawIOBase):
    """What xz has compressed.  lzma.open() knows no limit of memory."""

    def __init__(self, raw: Bytes) -> None:
        self._raw = raw
        self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: typing.Any) -> int:
        part = b''
        while not part and not self._decompressor.eof:
            more = self._raw.read(CHUNK) if self._decompressor.needs_input else b''
            if self._decompressor.needs_input and not more:
                raise EOFError('the compressed data is cut short')
            part = self._decompressor.decompress(more, len(buffer))
        buffer[: len(part)] = part
        return len(part)


class Reader:
    """The members of a tarball, in their order.

    :param members: how many headers it may have
    :param size: how many bytes its members may have together
    """

    def __init__(self, stream: Bytes, members: int, size: int) -> None:
        self._stream = stream
        self._limits = members, size
        self._members = self._size = 0
        #: how many bytes of the current member, and of what fills its last block, are unread
        self._unread = self._padding = 0

    def __iter__(self) -> collections.abc.Iterator[tarfile.TarInfo]:
        """Each member.  What is not read of its content is skipped.

        :raises tarfile.ReadError: when the tarball is broken, holds too much, or uses what is
            refused here: sparse files, and names or headers over the limits.
        """
        extended: dict[str, str] = {}
        while member := self._header():
            if member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                key = 'path' if member.type == tarfile.GNUTYPE_LONGNAME else 'linkpath'
                extended[key] = _text(self._whole(member, NAME).partition(b'\0')[0])
            elif member.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                extended |= _records(self._whole(member, EXTENDED))
            elif member.type == tarfile.XGLTYPE:
                # What git writes: a comment.
                self._whole(member, EXTENDED)
            else:
                self._enter(member, extended)
                extended = {}
                yield member
                for _ in self.content():
                    pass

    def content(self) -> collections.abc.Iterator[bytes]:
        """What is unread of the current member, in parts."""
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
        """Begin to read a member, once all is known of it."""
        if member.type == tarfile.GNUTYPE_SPARSE or any(
            k.startswith('GNU.sparse') for k in extended
        ):
            raise tarfile.ReadError('sparse files are not taken')
        member.name = extended.get('path', member.name)
        member.linkname = extended.get('linkpath', member.linkname)
        if 'size' in extended:
            member.size = _number(extended['size'])
        # A directory, link or device has no content, whatever its size says.
        known = member.type in tarfile.SUPPORTED_TYPES and not member.isreg()
        self._begin(0 if known else member.size)

    def _begin(self, size: int) -> None:
        """Count what is about to be read."""
        if size < 0:
            raise tarfile.ReadError('a size is negative')
        self._size += size
        members, most = self._limits
        if self._members > members or self._size > most:
            raise tarfile.ReadError(f'more than {members} files or {most >> 20} MiB')
        self._unread, self._padding = size, -size % tarfile.BLOCKSIZE

    def _whole(self, header: tarfile.TarInfo, limit: int) -> bytes:
        """All of a header's content."""
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


def _text(content: bytes) -> str:
    return content.decode('utf-8', 'surrogateescape')


def _number(text: str) -> int:
    if not re.fullmatch('[0-9]{1,15}', text):
        raise tarfile.ReadError(f'a size is {text!r:.64}: expected a number')
    return int(text)
