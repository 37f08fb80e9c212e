# SPDX-License-Identifier: Apache-2.0
"""Accelerators as a service: discovery, inventory, and binding to workloads.

:func:`allocate` and :func:`allocation` are for programs that use accelerators.
"""

__all__ = 'allocate', 'allocation'

# Tools that check types know this name. To import typing takes longer than all that commands load
# before Ctrl-C ends them without a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from cyborg_lite.door import allocate as allocate
    from cyborg_lite.door import allocation as allocation


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from cyborg_lite import door

    return getattr(door, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
