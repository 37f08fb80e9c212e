# SPDX-License-Identifier: Apache-2.0
"""What follows from the health of a device, by a policy of the operator.

A sample is what one look of a driver says of a device, unless it was asked for soon after another.
So many bad samples in a row have the policy applied, so many good ones in a row end that.  What all
of these samples show is applied.  A sample that is unknown counts neither way.
A new device has no good samples to weigh against: its first sample decides.

The count is in the row, as that of absences is: it survives a restart of agents and conductors, and
a report that is late is dropped before it counts.
"""

from __future__ import annotations

import collections.abc
import functools
import hashlib
import pathlib
import tomllib
import typing

from oslo_config import cfg
from oslo_log import log
from oslo_utils import timeutils

from cyborg_lite import model
from cyborg_lite.model import base
from cyborg_lite.model import health as healths

LOG = log.getLogger(__name__)

NO_NEW, TELL = model.Device.EFFECTS.values()
#: How a policy says that there is no effect.
NONE = 'none'
#: The levels that have effects.
BAD = (healths.CRITICAL, healths.WARNING)
#: How large the file may be, in bytes, and how many entries it may have.
SIZE, MOST = 65536, 1024

Effects = frozenset[str]


class Broken(cfg.ConfigFileValueError):
    """The file cannot be used: says where, and what was expected."""

    def __init__(self, where: object, expected: str) -> None:
        super().__init__(f'[conductor] health_policy: {where}: expected {expected}')


class Policy(typing.NamedTuple):
    """Which effects a health has, and after how many samples."""

    #: by level, and by reason or how a reason begins
    effects: tuple[tuple[str, Effects], ...] = (
        (healths.CRITICAL, frozenset((NO_NEW, TELL))),
        (healths.WARNING, frozenset((TELL,))),
    )
    bad: int = 3
    good: int = 3

    def of(self, level: str, reason: str | None) -> Effects:
        """The effects of a health: by as much of the reason as the policy names, else by level."""
        if level not in BAD:
            return frozenset()
        known, words = dict(self.effects), (reason or '').split('_')
        beginnings = ('_'.join(words[:n]) for n in range(len(words), 0, -1))
        return next((known[each] for each in beginnings if each in known), known[level])


@functools.cache
def digest(policy: Policy) -> str:
    """What differs where a policy does: a report is read again under another one."""
    entries = sorted((name, sorted(effects)) for name, effects in policy.effects)
    text = repr((entries, policy.bad, policy.good))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(conf: cfg.ConfigOpts) -> Policy:
    """The policy of the operator.

    :raises Broken: when its file cannot be used.
    """
    effects = dict(Policy().effects)
    if conf.conductor.health_policy:
        effects |= _read(pathlib.Path(conf.conductor.health_policy))
    samples = conf.conductor.health_bad_samples, conf.conductor.health_good_samples
    return Policy(tuple(sorted(effects.items())), *samples)


def _read(file: pathlib.Path) -> dict[str, Effects]:
    try:
        # What is no plain file, such as a pipe, may have no end.
        text = file.read_text('utf-8') if file.is_file() and file.stat().st_size <= SIZE else None
    except (OSError, ValueError):
        text = None
    if text is None:
        raise Broken(file, f'a readable file of TOML, at most {SIZE} bytes')
    try:
        entries = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of a number with too many digits
        raise Broken(file, f'TOML ({error})') from None
    if len(entries) > MOST:
        raise Broken(file, f'at most {MOST} entries')
    return {name: _effects(file, name, value) for name, value in entries.items()}


def _effects(file: pathlib.Path, name: str, value: typing.Any) -> Effects:
    where = f'{file}, {name:.80}'
    if not healths.is_code(name) or name in (healths.OK, healths.UNKNOWN):
        raise Broken(where, 'warning, critical, or a reason such as pcie_width, as the name')
    given = value if isinstance(value, list) else [value]
    if value != NONE and not (given and all(each in (NO_NEW, TELL) for each in given)):
        raise Broken(where, f'"{NONE}", "{NO_NEW}", "{TELL}", or a list of the last two')
    return frozenset(given) - {NONE}


def begin(device: model.Device, policy: Policy) -> None:
    """Note the health that the first report of a device tells."""
    device.health_since = timeutils.utcnow()
    # It may have inherited a fault.
    if not device.fault:
        _settle(device, device.health, device.health_reason, policy)
    if device.health != healths.UNKNOWN:
        _remember(device)


def weigh(device: model.Device, found: model.Device, policy: Policy, fresh: bool) -> bool:
    """Note the health that a report tells of a known device, and what follows from it; returns
    whether its holders have to be told.

    :param device: the row, whose health is still that of the report before.
    :param fresh: whether it is a sample: whether the driver has looked since the last one.
    """
    before = device.health, device.health_reason, device.effects
    fault = _alert(device)
    if device.fault:
        # The policy may be another one than when it was applied.
        level, reason = _read_sample(device.fault)
        if policy.of(level, reason) != {*device.effects}:
            _settle(device, level, reason, policy)
    if fresh and found.health != healths.UNKNOWN:
        _count(device, found, policy)
    told = found.health, found.health_reason
    if device.health_since is None or told != before[:2]:
        device.health_since = timeutils.utcnow()
    device.health, device.health_reason = told
    if before != (*told, device.effects):
        _remember(device)
    return _alert(device) != fault


def silence(device: model.Device, seconds: int, policy: Policy) -> bool:
    """Note that the driver of a device does not answer: its health is unknown, and effects stay;
    returns whether its holders have to be told.

    :param seconds: how long it was waited for; 0 if it is not known that it does not answer.
    """
    if not seconds:
        return False
    level, reason = healths.unanswered(seconds)
    return weigh(device, model.Device(health=level, health_reason=reason), policy, fresh=False)


def _alert(device: model.Device) -> tuple[str | None, bool] | None:
    """What holders of a device are told; None for nothing."""
    return (device.fault, bool(device.withheld)) if device.alerted else None


def counts(device: model.Device, policy: Policy) -> bool:
    """Whether the next report must be processed even if it is equal: it is one more sample."""
    if device.health == healths.UNKNOWN:
        return False
    # What only a look showed that is no sample is still to be counted.
    return bool(device.streak or _step(device, device.health, device.health_reason, policy))


def inherit(device: model.Device, twin: model.Device) -> None:
    """Keep the fault of another row of the same card, which goes: good samples will end it."""
    if _rank(twin.effects) > _rank(device.effects):
        device.fault, device.withheld, device.alerted = twin.fault, twin.withheld, twin.alerted


def _count(device: model.Device, found: model.Device, policy: Policy) -> None:
    """Count a sample: above 0 are those in a row that are worse, below 0 those that are better.

    Once there are enough, what all of them show is settled. Samples that go further still count.
    """
    sample = found.health, found.health_reason
    step = _step(device, *sample, policy)
    if step == 0:
        _settle(device, *sample, policy)
        return
    sign = 1 if step > 0 else -1
    if device.streak * sign <= 0:
        device.streak, device.nearest = 0, None
    device.streak += sign
    if device.nearest and abs(step) > abs(_step(device, *_read_sample(device.nearest), policy)):
        device.further += 1
    else:
        device.nearest, device.further = _written(*sample), 0
    if device.streak >= policy.bad or -device.streak >= policy.good:
        further = device.further
        _settle(device, *_read_sample(device.nearest), policy)
        if further:
            # They all go as far: there is one step beyond the nearest.
            device.streak, device.nearest = sign * further, _written(*sample)


def _step(device: model.Device, level: str, reason: str | None, policy: Policy) -> int:
    """How much worse the effects of a health are than those in force; below 0 they are better."""
    return _rank(policy.of(level, reason)) - _rank(device.effects)


def _written(level: str, reason: str | None) -> str:
    return ': '.join(filter(None, (level, reason)))


def _read_sample(text: str) -> tuple[str, str | None]:
    level, _, reason = text.partition(': ')
    return level, reason or None


def _rank(found: collections.abc.Container[str]) -> int:
    return 2 if NO_NEW in found else 1 if TELL in found else 0


def _settle(device: model.Device, level: str, reason: str | None, policy: Policy) -> None:
    """Put into force what a health has for effects."""
    wanted, out = policy.of(level, reason), bool(device.withheld)
    device.fault = _written(level, reason) if wanted else None
    device.withheld, device.alerted = NO_NEW in wanted, TELL in wanted
    device.streak, device.nearest, device.further = 0, None, 0
    if device.withheld != out:
        LOG.log(
            log.WARNING if device.withheld else log.INFO,
            'Device %s (%s) of host %s is %s: its health is %s',
            *(device.address, device.model, device.host.name),
            'given out no more' if device.withheld else 'given out again',
            _written(level, reason),
        )


def _remember(device: model.Device) -> None:
    change = {
        'at': base.iso(timeutils.utcnow()),
        'health': device.health,
        'reason': device.health_reason,
        'effects': device.effects,
    }
    device.changes = [*(device.changes or ()), change][-model.Device.REMEMBERED :]
