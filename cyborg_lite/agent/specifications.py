# SPDX-License-Identifier: Apache-2.0
"""The CDI specifications of the leases of this machine: containers use a lease by its name."""

from __future__ import annotations

import collections.abc
import pathlib
import threading

from oslo_log import log

from cyborg_lite import exception
from cyborg_lite.delivery import cdi
from cyborg_lite.delivery import documents

LOG = log.getLogger(__name__)

#: By the uuid of a lease, what makes its document.
Documents = collections.abc.Mapping[str, collections.abc.Callable[[], documents.Document]]


class Specifications:
    """A file in the directory for each lease that is active; files of others are removed."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        # Two threads that write one file would write one draft.
        self._lock = threading.Lock()
        self._problem = ''

    def keep(self, wanted: Documents, others: bool = False) -> None:
        """Write the files that are absent, and remove those of other leases.

        A directory that cannot be written is logged: a lease is of use without its file.

        :param others: whether files of other leases stay.
        """
        with self._lock:
            problem = self._keep(wanted, others)
            if problem and problem != self._problem:
                LOG.error('The CDI files of leases cannot be kept: %s', problem)
            self._problem = problem

    def _keep(self, wanted: Documents, others: bool) -> str:
        """The last problem; a file that has one keeps no other from its place."""
        problem = ''
        try:
            known = cdi.known(self._directory)
        except OSError as error:
            return exception.line(error)
        for uuid in (set() if others else known - wanted.keys()) | (wanted.keys() - known):
            try:
                if uuid in wanted:
                    cdi.write(self._directory, wanted[uuid]())
                else:
                    cdi.remove(self._directory, uuid)
            except OSError as error:
                problem = exception.line(error)
        return problem
