# SPDX-License-Identifier: Apache-2.0
"""Which card of a report is which card of the database.

A card is itself, not its slot: its serial number decides where it is known, and else its address.
"""

from __future__ import annotations

import collections
import collections.abc

from cyborg_lite import model

Pair = tuple[model.Device, model.Device | None]


def pair(known: list[model.Device], found: list[model.Device]) -> list[Pair]:
    """Each found device with its known device, or None if it is new.

    A known device is in one pair at most.
    """
    serials = _once(device.serial for device in found) & _once(device.serial for device in known)
    by_serial = {device.serial: device for device in known if device.serial in serials}
    certain = {id(card): by_serial[card.serial] for card in found if card.serial in serials}
    taken = {id(device) for device in certain.values()}
    at = collections.defaultdict(list)
    for device in known:
        if id(device) not in taken:
            at[device.identity].append(device)
    pairs: list[Pair] = []
    for card in found:
        same = certain.get(id(card)) or _likely(card, at[card.identity])
        if same is not None and id(card) not in certain:
            at[card.identity].remove(same)
        pairs.append((card, same))
    return pairs


def _once(serials: collections.abc.Iterable[str | None]) -> set[str]:
    """The serial numbers that are there exactly once: those of many tell nothing."""
    counts = collections.Counter(serials)
    return {serial for serial, count in counts.items() if serial and count == 1}


def _likely(card: model.Device, there: list[model.Device]) -> model.Device | None:
    """The known device at the card's address that may be the same card.

    A driver that cannot read the serial number for now says nothing against a known card.
    """
    fit = [device for device in there if device.may_be(card) and not _differ(device, card)]
    # A device that was present in the last report is likelier than a missing one.
    return min(reversed(fit), key=lambda device: device.absences, default=None)


def _differ(device: model.Device, card: model.Device) -> bool:
    return None not in (device.serial, card.serial) and device.serial != card.serial
