# SPDX-License-Identifier: Apache-2.0
"""The commands.  Whatever starts the service imports this first: it chooses native threads."""

from __future__ import annotations

import importlib.abc
import sys
import typing


class _NoEventlet(importlib.abc.MetaPathFinder):
    """Makes eventlet look absent.

    oslo.service still requires it to be installed, and futurist imports whatever is.
    """

    def find_spec(self, fullname: str, path: typing.Any, target: typing.Any = None) -> None:
        if fullname.partition('.')[0] == 'eventlet':
            raise ModuleNotFoundError('cyborg_lite runs on native threads', name=fullname)


sys.meta_path.insert(0, _NoEventlet())

from oslo_service import backend  # noqa: E402

# Before anything else imports oslo.service, which would take eventlet.
backend.init_backend(backend.BackendType.THREADING)
