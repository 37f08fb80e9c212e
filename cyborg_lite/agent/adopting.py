# SPDX-License-Identifier: Apache-2.0
"""Adopt a running job: ask for the very cards that a process uses already, without a lease."""

from __future__ import annotations

from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.agent import leases
from cyborg_lite.agent import processes

#: What says nothing of the accelerators, and what may be asked for a process that uses some.
LABELS = {'name', 'queue', *model.Allocation.LABELS}
ADOPTING = {'count', 'seconds', *LABELS}


def request(served: leases.Leases, process: processes.Process, asked: leases.Row) -> leases.Row:
    """The request of a process; that for the cards that it uses already, itself or by a child.

    It would be given others else, and what it uses would be given to somebody else.

    :raises cyborg_lite.exception.Conflict: when it asks for others, or may use cards that cannot be
        told; when a process of another user uses one, too.
    """
    # First: the processes of a lease that ends meanwhile are seen, and its cards are not adopted.
    known = served.all()
    rogues = served.rogues()
    # Some software opens all cards, also those that others have leased.
    leased = {address for lease in known for address in lease.addresses()}
    seen = _of(rogues, process, leased)
    held = served.held_by_others() if seen else set()
    used = [address for address in seen if address not in held]
    if not used:
        if not asked.keys() - LABELS:
            _refuse_held(process, seen)
            _refuse_unseen(served, process, leased)
        return asked
    said = f'process {process.pid} uses {processes.shortened(used)} without a lease'
    if asked.keys() - ADOPTING or asked.get('count', len(used)) != len(used):
        raise exception.Conflict(
            reason=f'{said}, and can lease nothing else: "cyborg-lite alloc --pid {process.pid}" '
            'without a number and kind of accelerators leases what it uses'
        )
    others = [use for address in used for use in rogues[address] if use.process.uid != process.uid]
    if others:
        raise exception.Conflict(
            reason=f'{said}, and so does {processes.listed(others)}: end one of them first'
        )
    return {name: value for name, value in asked.items() if name != 'count'} | {'addresses': used}


def _of(
    uses: dict[str, list[processes.Use]], process: processes.Process, leased: set[str]
) -> list[str]:
    """The addresses of the cards that a process uses, itself or by a child, without the leased."""
    return sorted(
        address
        for address, of_card in uses.items()
        if address not in leased
        and any(processes.is_below(use.process.pid, process.pid) for use in of_card)
    )


def _refuse_held(process: processes.Process, held: list[str]) -> None:
    """Refuse a process that uses cards which are all held already."""
    if held:
        raise exception.Conflict(
            reason=f'process {process.pid} uses {processes.shortened(held)}, which an instance or '
            'an allocation of the API holds: "-n 1" leases another one'
        )


def _refuse_unseen(served: leases.Leases, process: processes.Process, leased: set[str]) -> None:
    """Refuse a process that may use cards nevertheless: others would not be those that it uses."""
    if opened := _of(served.opened(), process, leased):
        raise exception.Conflict(
            reason=f'process {process.pid} has {processes.shortened(opened)} open, and its driver '
            'has not listed it as a user: try again after the next report of the agent, or lease '
            'another one with "-n 1"'
        )
    if any(served.opening(lease) for lease in served.all() if lease.process.key == process.key):
        raise exception.Conflict(
            reason=f'process {process.pid} has a lease of what it uses: "-n 1" leases one more'
        )
