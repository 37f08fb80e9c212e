# SPDX-License-Identifier: Apache-2.0
"""Facts of Gaudi cards from Intel's library HLML, as JSON values: what sysfs does not tell.

Each value is read alone: a failure does not affect other values.

Source: pyhlml 1.24 and the Gaudi documentation, "HLML API Reference".
"""

from __future__ import annotations

import collections.abc
import contextlib
import os
import typing

from oslo_log import log

from cyborg_lite import driver
from cyborg_lite.driver import nvml

LOG = log.getLogger(__name__)

#: Where pyhlml looks for the library; it prints a line if there is none.
LIBRARY = '/usr/lib/habanalabs/libhlml.so'
#: The values of HLML_MEMORY_ERROR_TYPE_UNCORRECTED, and of HLML_VOLATILE_ECC: those since the last
#: reset of the card or load of its driver.
UNCORRECTED, VOLATILE = 1, 0
#: The errors of HLML, by their numbers: the kernel driver is not loaded; the card or the release
#: does not have a value, and pyhlml's 2 is that the library does not have a call; the card is lost.
NOT_LOADED, SILENT, LOST = 9, (2, 3, 21), 15


def ask(
    addresses: collections.abc.Collection[str], known: bool, note: nvml.Note
) -> nvml.Answers | None:
    """The facts of these cards of this machine from HLML, by address; None if it does not load.

    :param addresses: the addresses of the cards
    :param known: whether HLML told of a card before, so that no answer now is a fault
    :param note: called with a text for each failure
    """
    if not os.path.exists(LIBRARY):
        if known:
            note(f'HLML is not at {LIBRARY} any more')
        return None
    try:
        import pyhlml

        pyhlml.hlmlInit()
    except Exception as error:  # package, library or driver is absent, or of another release
        LOG.info('HLML does not load, so only sysfs is read: %s', error)
        if known or not isinstance(error, ImportError) and _number(error) != NOT_LOADED:
            note(f'HLML does not load: {error}')
        return None
    try:
        return {address: _ask_for(pyhlml, address, note) for address in sorted(addresses)}
    finally:
        # An error of the shutdown does not invalidate the answers.
        with contextlib.suppress(Exception):
            pyhlml.hlmlShutdown()


def _number(error: Exception) -> int | None:
    """The number of an error of HLML; None of any other."""
    number = getattr(error, 'value', None)
    return int(number) if isinstance(number, int) else None


def _ask_for(hlml: typing.Any, address: str, note: nvml.Note) -> nvml.Facts:
    try:
        card = hlml.hlmlDeviceGetHandleByPCIBusID(address)
    except Exception as error:
        note(f'HLML does not tell of {address}: {error}')
        return {'health': [*_failed(error)]}
    facts: nvml.Facts = {}
    said = []
    try:
        facts['utilization'] = int(hlml.hlmlDeviceGetUtilizationRates(card).aip)
    except Exception as error:
        said.append(_failed(error))
        if _number(error) not in SILENT:
            note(f'HLML does not tell the utilization of {address}: {error}')
    for reason, (level, symptom) in SYMPTOMS.items():
        try:
            ill = int(symptom(hlml, card)) > 0
            said.append(driver.Health(level, reason) if ill else driver.Health('ok'))
        except Exception as error:
            said.append(_failed(error))
    return facts | {'health': [*(driver.worst(*said) or driver.Health())]}


def _failed(error: Exception) -> driver.Health:
    """The health of a card after a failed call."""
    number = _number(error)
    if number == LOST:
        return driver.Health('critical', 'gaudi_lost')
    return driver.Health('ok') if number in SILENT else driver.Health()


Call = collections.abc.Callable[[typing.Any, typing.Any], typing.Any]
#: The symptoms of a faulty card by reason: the level, and a call whose answer is 0 of a sound card.
SYMPTOMS: dict[str, tuple[str, Call]] = {
    'gaudi_ecc': (
        'critical',
        lambda hlml, card: hlml.hlmlDeviceGetTotalECCErrors(card, UNCORRECTED, VOLATILE),
    ),
    'gaudi_row_pending': (
        'warning',
        lambda hlml, card: hlml.hlmlDeviceGetReplacedRowsPendingStatus(card),
    ),
}
