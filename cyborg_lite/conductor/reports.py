# SPDX-License-Identifier: Apache-2.0
"""What agents may ask of a conductor: to take a report, which is checked before it is believed."""

from __future__ import annotations

import collections.abc
import json
import re
import typing

from oslo_config import cfg
from oslo_log import log
import oslo_messaging as messaging

from cyborg_lite import context
from cyborg_lite import contract
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.conductor import health
from cyborg_lite.conductor import heartbeat
from cyborg_lite.conductor import inventory
from cyborg_lite.conductor import journal

LOG = log.getLogger(__name__)

#: What an agent of any release says.
REQUIRED = {'host', 'boot_id', 'sequence', 'interval', 'digest', 'devices', 'drivers'}
#: The name or the address of a host.
HOST = re.compile(r'[A-Za-z0-9:][A-Za-z0-9_.:%-]{0,254}')
#: The longest time between two reports, in seconds: a host counts as up for 2.5 times as long.
INTERVAL = 3600
#: The most devices that a host may have, and the most bytes of JSON that say so.
DEVICES = 4096
SIZE = 8 << 20
#: The most parts of each kind that the devices of a host may have together.
PARTS = {'deployables': 16384, 'attach_handles': 16384, 'attributes': 65536}
#: What is known of a driver.
STATE = ('state', 'reason', 'devices', 'complete', 'waited')
#: The most leases that a host may have.
LEASES = 65536
#: The most drivers that a host may have, and the longest reason that one may give.
DRIVERS, REASON = 256, 4096


class Reports:
    """The end of the topic that agents reach."""

    target = messaging.Target(version='1.1')

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        is_unchanged: collections.abc.Callable[..., bool],
        receive: collections.abc.Callable[..., None],
    ) -> None:
        """
        :param is_unchanged: whether a report says what the last one did; if so, it is noted.
        :param receive: takes a report in that was checked.
        :raises cyborg_lite.conductor.health.Broken: when the policy of health cannot be used.
        """
        self._conf = conf
        self._is_unchanged = is_unchanged
        self._receive = receive
        self._policy = health.load(conf)

    @messaging.expose
    @messaging.expected_exceptions(exception.CyborgError)
    def report(self, ctxt: context.RequestContext, **report: typing.Any) -> None:
        """Store the findings of an agent on its host.

        :raises cyborg_lite.exception.Invalid: when the report is invalid.
        """
        frame = check(report)
        # Most reports end here, and it takes longer to check devices than all else.
        if not self._is_unchanged(ctxt, report=frame, policy=self._policy):
            checked = check_devices(frame, report['devices'])
            absences = self._conf.conductor.absences
            self._receive(ctxt, report=checked, absences=absences, policy=self._policy)


def check(report: dict[str, typing.Any]) -> heartbeat.Frame:
    """A report without its devices, which are not checked yet, and with a limited interval.

    Fields that this release does not know are left out.

    :raises cyborg_lite.exception.Invalid: when anything in it is invalid.
    """
    try:
        _check_frame(report)
    except ValueError as error:
        LOG.warning('A report of host %.255r is refused: %s', report.get('host'), error)
        raise exception.Invalid(reason=f'the report is refused: {error}') from error
    frame = {key: report[key] for key in heartbeat.Frame.__annotations__ if key in report}
    frame['drivers'] = {name: _known(state) for name, state in report['drivers'].items()}
    if report['interval'] > INTERVAL:
        LOG.warning('Host %s is to report every %s s at least', report['host'], INTERVAL)
        frame['interval'] = INTERVAL
    return typing.cast('heartbeat.Frame', frame)


def check_devices(frame: heartbeat.Frame, found: list[typing.Any]) -> inventory.Report:
    """A report with those of its devices that are valid."""
    rows = [_row(facts) for facts in found]
    devices, complaints = contract.check(rows)
    for complaint in complaints:
        LOG.warning('Host %s reports a bad device: %s', frame['host'], complaint)
    taken = {id(device) for device in devices}
    bad = [facts for facts, row in zip(found, rows, strict=True) if id(row) not in taken]
    # A device that is left out may be there: it must not count as gone.
    drivers = frame['drivers']
    for name in set().union(*(_drivers_of(facts, drivers) for facts in bad)):
        drivers = drivers | {name: drivers[name] | _degraded(complaints)}
    report = {**frame, 'devices': [each.facts() for each in devices], 'drivers': drivers}
    return typing.cast('inventory.Report', report)


def _drivers_of(facts: typing.Any, drivers: dict[str, model.Facts]) -> set[str]:
    """The driver that reports a bad device; all of them where that cannot be told."""
    try:
        named = {part['driver_name'] for part in facts['deployables']} & drivers.keys()
    except (KeyError, TypeError):  # anything may be anywhere
        named = set()
    return named or set(drivers)


def _degraded(complaints: list[str]) -> model.Facts:
    # A device that is left out may be present, even if the driver has looked at all cards.
    return {'state': 'degraded', 'reason': '; '.join(complaints)[:1000], 'complete': False}


def _known(state: model.Facts) -> model.Facts:
    """What is kept of the state of a driver; the reason may be text of a tool."""
    known = {key: state[key] for key in STATE if key in state}
    if 'reason' in known:
        known['reason'] = journal.plain(known['reason'])
    return known


def _row(facts: typing.Any) -> typing.Any:
    """The device that the facts tell of; what tells of none is left to the contract to refuse."""
    try:
        return model.Device.from_facts(facts)
    except Exception:  # anything may be anywhere
        return facts


def _check_frame(report: dict[str, typing.Any]) -> None:
    """Check all but what each device says."""
    if missing := REQUIRED - report.keys():
        raise ValueError(f'{", ".join(sorted(missing))} is missing')
    if not isinstance(report['host'], str) or not HOST.fullmatch(report['host']):
        raise ValueError('host: expected a host name of up to 255 characters')
    _text(report, 'boot_id', 36)
    _text(report, 'digest', 64)
    for name, width in (('agent', 36), ('machine', 64), ('secret', 64), ('access', 16)):
        if report.get(name) is not None:
            _text(report, name, width)
    _number(report, 'sequence', 0, 2**63 - 1)
    _number(report, 'interval', 1, 2**63 - 1)
    if 'idle_after' in report:
        _number(report, 'idle_after', 0, 2**31 - 1)
    _check_drivers(report['drivers'])
    _check_counts('looks', report.get('looks', {}))
    _check_counts('samples', report.get('samples', {}))
    _check_look(report)
    if not isinstance(report['devices'], list) or len(report['devices']) > DEVICES:
        raise ValueError(f'devices: expected a list of up to {DEVICES}')
    _check_size(report)
    _check_parts(report['devices'])


def _check_size(report: dict[str, typing.Any]) -> None:
    try:
        size = len(json.dumps(report, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f'not JSON: {error}') from error
    if size > SIZE:
        raise ValueError(f'expected up to {SIZE} bytes of JSON, not {size}')


def _check_parts(devices: list[typing.Any]) -> None:
    deployables = _listed(devices, 'deployables')
    found = {'deployables': deployables} | {
        name: _listed(deployables, name) for name in ('attach_handles', 'attributes')
    }
    for name, parts in found.items():
        if len(parts) > PARTS[name]:
            raise ValueError(f'devices: expected up to {PARTS[name]} {name}, not {len(parts)}')


def _listed(rows: list[typing.Any], name: str) -> list[typing.Any]:
    """All parts of this name; what is no list of parts is left to the contract to refuse."""
    lists = (row.get(name) for row in rows if isinstance(row, dict))
    return [part for parts in lists if isinstance(parts, list) for part in parts]


def _check_drivers(drivers: typing.Any) -> None:
    if not isinstance(drivers, dict) or len(drivers) > DRIVERS:
        raise ValueError(f'drivers: expected a mapping of up to {DRIVERS}')
    for name, state in drivers.items():
        if not _is_text(name, 255) or not isinstance(state, dict):
            raise ValueError(
                'drivers: expected a mapping for each name of up to 255 printable characters'
            )
        try:
            _check_state(state)
        except ValueError as error:
            raise ValueError(f'drivers: {name}: {error}') from error


def _check_counts(field: str, counts: typing.Any) -> None:
    if not isinstance(counts, dict) or len(counts) > DRIVERS:
        raise ValueError(f'{field}: expected a mapping of up to {DRIVERS}')
    for name in counts:
        if not _is_text(name, 255):
            raise ValueError(f'{field}: expected names of up to 255 printable characters')
        _number(counts, name, 0, 2**63 - 1)


def _check_look(report: dict[str, typing.Any]) -> None:
    """Check what is said of the look at processes."""
    if not isinstance(report.get('observes', False), bool):
        raise ValueError('observes: expected true or false')
    if 'looked_after' in report:
        _number(report, 'looked_after', 0, 2**63 - 1)
    _check_leases(report.get('leases') or [])


def _check_leases(leases: typing.Any) -> None:
    if not isinstance(leases, list) or len(leases) > LEASES:
        raise ValueError(f'leases: expected a list of up to {LEASES}')
    if not all(_is_text(each, 36) for each in leases):
        raise ValueError('leases: expected texts of up to 36 printable characters')


def _check_state(state: dict[str, typing.Any]) -> None:
    if state.get('state') not in ('ok', 'degraded'):
        raise ValueError('state: expected ok or degraded')
    reason = state.get('reason', '')
    if not isinstance(reason, str) or len(reason) > REASON:
        raise ValueError(f'reason: expected up to {REASON} characters')
    if 'devices' in state:
        _number(state, 'devices', 0, 2**31 - 1)
    if 'waited' in state:
        _number(state, 'waited', 0, 2**31 - 1)
    if not isinstance(state.get('complete', False), bool):
        raise ValueError('complete: expected true or false')


def _text(report: dict[str, typing.Any], name: str, width: int) -> None:
    if not _is_text(report[name], width):
        raise ValueError(f'{name}: expected up to {width} printable characters')


def _is_text(value: typing.Any, width: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= width and value.isprintable()


def _number(report: dict[str, typing.Any], name: str, least: int, most: int) -> None:
    value = report[name]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f'{name}: expected a whole number from {least} to {most}')
