# SPDX-License-Identifier: Apache-2.0
"""The commands.  Each entry point imports this first: it chooses native threads."""

from __future__ import annotations

import importlib.machinery
import sys

# As in cyborg_lite itself: nothing is loaded that takes long.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing

#: The module in which oslo.service stores the choice.
_BACKEND = 'oslo_service.backend'


class _Backend(importlib.machinery.SourceFileLoader):
    """Chooses native threads as soon as the module is loaded, before anything uses eventlet."""

    def exec_module(self, module: typing.Any) -> None:
        super().exec_module(module)
        module.init_backend(module.BackendType.THREADING)


class _NoEventlet:
    """Makes the import of eventlet fail.

    oslo.service requires eventlet, and futurist imports it if it is installed.  oslo.service takes
    long to load: only commands that need it import it.
    """

    def find_spec(
        self, fullname: str, path: typing.Any, target: typing.Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition('.')[0] == 'eventlet':
            raise ModuleNotFoundError('cyborg_lite runs on native threads', name=fullname)
        if fullname != _BACKEND:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin is not None:
            spec.loader = _Backend(fullname, spec.origin)
        return spec


sys.meta_path.insert(0, _NoEventlet())
