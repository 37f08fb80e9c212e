# SPDX-License-Identifier: Apache-2.0
"""Who has which card open, with a lease or without."""

from __future__ import annotations

import collections.abc
import dataclasses
import typing

from oslo_log import log

from cyborg_lite.agent import nodes
from cyborg_lite.agent import processes

if typing.TYPE_CHECKING:
    from cyborg_lite.agent import leases as leases_

    Leases = collections.abc.Sequence[leases_.Lease]

LOG = log.getLogger(__name__)


def rogues(
    finding: nodes.Finding, leases: Leases, compared: bool
) -> dict[str, list[processes.Use]]:
    """By the address of a card, who uses it without a lease: see leases.Leases.rogues.

    :param leases: all leases of the host.
    :param compared: whether the leases of an earlier start of the agent are known.
    """
    found: dict[str, list[processes.Use]] = {}
    leased = {address for lease in leases for address in lease.addresses()}
    # A process that a driver lists uses the card: others may have opened all.
    exact = finding.listed.keys() - leased if compared else set()
    for use in processes.uses(finding.used) if finding.used else ():
        addresses = {finding.used[node] for node in use.nodes}
        if _is_of(leases, use, compared):
            addresses &= exact
        for address in sorted(addresses):
            if use.process.pid in finding.listed.get(address, (use.process.pid,)):
                memory = finding.memory.get(address, {}).get(use.process.pid)
                found.setdefault(address, []).append(dataclasses.replace(use, memory_mb=memory))
    return found


def is_closed(lease: leases_.Lease, own: set[str], others: Leases, compared: bool) -> bool:
    """Whether no process has a node of a lease open, but those of other leases.

    Processes that are older than the lease are left out: services such as a persistence daemon have
    nodes open all the time.

    :param own: the nodes that only this lease has.
    :param others: the leases of the host that are not part of this one.
    """
    try:
        found = processes.uses(own) if own else []
    except OSError as error:
        LOG.warning('Who has the cards of lease %s open cannot be seen: %s', lease.uuid, error)
        return False
    return all(_is_older(use.process, lease) or _is_of(others, use, compared) for use in found)


def _is_older(process: processes.Process, lease: leases_.Lease) -> bool:
    """Whether a process was there before that of a lease, in one boot."""
    holder = lease.process
    return process.boot_id == holder.boot_id and process.started < holder.started


def _is_of(leases: Leases, use: processes.Use, compared: bool) -> bool:
    """Whether a process is of one of these leases: as it is known, or since its user has one that
    the process names, or one of its node.
    """
    if use.mark and not compared:
        return True
    if any(use.process.key in each.identities() for each in leases):
        return True
    mine = [each for each in leases if use.process.uid in (each.process.uid, 0)]
    named = any(lease.uuid == use.mark for lease in mine)
    same = [each for each in mine if each.process.uid == use.process.uid]
    return named or any(use.nodes & lease.nodes() for lease in same)
