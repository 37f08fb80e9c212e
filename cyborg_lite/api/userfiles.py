# SPDX-License-Identifier: Apache-2.0
"""Files with a line for each user of ``http_basic``, which operators edit while the API runs."""

from __future__ import annotations

import collections.abc
import os
import pathlib
import typing

from oslo_config import cfg
from oslo_log import log

LOG = log.getLogger(__name__)

#: The maximum size of a file, in bytes.
MOST = 1024 * 1024

T = typing.TypeVar('T')


class Broken(cfg.ConfigFileValueError):
    """The file is invalid: the message names the place and the expected form."""

    def __init__(self, option: str, where: str, reason: str) -> None:
        super().__init__(f'[api] {option}: {where}: {reason}')


class UserFile(typing.Generic[T]):
    """What a file says of each user. The file is read for each request.

    Blank lines, and lines that begin with ``#``, are skipped.
    """

    def __init__(
        self,
        option: str,
        file: str,
        form: str,
        parse: collections.abc.Callable[[str], tuple[str, T]],
    ) -> None:
        """
        :param form: the expected form of the lines, for messages.
        :param parse: returns the user of a line and what the line says of the user; raises
            ValueError with the expected form.
        :raises Broken: when the file is invalid.
        """
        self._option = option
        self._file = pathlib.Path(file).absolute()
        self._form = form
        self._parse = parse
        self._known = self._read()
        self._said = ''

    def users(self) -> dict[str, T]:
        """What the file says now. While it is invalid, its last valid content stays in force."""
        try:
            self._known, self._said = self._read(), ''
        except Broken as error:
            if str(error) != self._said:
                self._said = str(error)
                LOG.error('%s. The users from before stay in force.', error)
        return self._known

    def _read(self) -> dict[str, T]:
        known: dict[str, T] = {}
        lines: dict[str, int] = {}
        for number, line in enumerate(self._text().split('\n'), 1):
            if not line.strip() or line.lstrip().startswith('#'):
                continue
            where = f'{self._file}, line {number}'
            try:
                user, said = self._parse(line)
            except ValueError as error:
                raise Broken(self._option, where, str(error)) from None
            if user in known:
                reason = f'user {user} is in line {lines[user]} already'
                raise Broken(self._option, where, reason)
            known[user], lines[user] = said, number
        return known

    def _text(self) -> str:
        reason = ''
        try:
            # Only a plain file is read: a pipe may have no end.
            found = self._file.stat()
            if self._file.is_file() and found.st_size <= MOST:
                return self._file.read_text('utf-8')
        except OSError as error:
            reason = f'{os.strerror(error.errno or 0)}; '
        except ValueError:
            pass
        raise Broken(
            self._option,
            str(self._file),
            f'{reason}expected a readable file of lines {self._form}, in UTF-8, at most {MOST} '
            'bytes',
        )
