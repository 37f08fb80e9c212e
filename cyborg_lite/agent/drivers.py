# SPDX-License-Identifier: Apache-2.0
"""The drivers of one host: loaded once, asked together, each failing alone."""

from __future__ import annotations

import collections.abc
import concurrent.futures
import dataclasses
import difflib
from importlib import metadata
import math
import threading
import time
import typing

from oslo_config import cfg
from oslo_log import log
from stevedore import named

from cyborg_lite import contract
from cyborg_lite import driver
from cyborg_lite import model

LOG = log.getLogger(__name__)

NAMESPACE = 'cyborg_lite.drivers'
#: Upstream's group. Its drivers return versioned objects and read the host's own files.
UPSTREAM_NAMESPACE = 'cyborg.accelerator.driver'


@dataclasses.dataclass
class State:
    """How a driver is: ``ok``, or ``degraded`` and why."""

    state: str = 'ok'
    reason: str = ''
    devices: int = 0
    #: of a degraded one: whether it looked at all cards, so that one that it lacks is not there
    complete: bool = False

    @property
    def words(self) -> str:
        """How it is, in a sentence; one that could not look found nothing that says anything."""
        found = f', {self.devices} device{"" if self.devices == 1 else "s"}'
        count = found if self.devices or self.state == 'ok' else ''
        return f'{self.state}{count}' + (f': {self.reason}' if self.reason else '')

    def facts(self) -> dict[str, typing.Any]:
        """As it is reported; an ``ok`` one has always looked at all."""
        facts = dataclasses.asdict(self)
        if not self.complete:
            del facts['complete']
        return facts


@dataclasses.dataclass
class Findings:
    """What all drivers of a host found at one moment."""

    devices: list[model.Device]
    drivers: dict[str, State]
    #: how often each has looked: a health that is reported twice is one sample
    looks: dict[str, int]


#: The devices that a driver found, what it could not learn, and whether it looked at all cards.
Answer = tuple[list[model.Device], list[str], bool]


class Scanner:
    """One driver: asked one question at a time, in a thread; and what it answered last."""

    def __init__(
        self, name: str, asked: driver.Driver, woken: collections.abc.Callable[[], None]
    ) -> None:
        """A scanner, which has asked nothing yet.

        :param woken: called when a late answer arrives.
        """
        self.name = name
        self.answered = False
        self.looks = 0
        self.devices: list[model.Device] = []
        #: what other drivers do not report: what this one reported when it last could
        self.claims: contract.Seen = set()
        self.state = State()
        self.begun = 0.0
        self._driver = asked
        self._woken = woken
        self._future: concurrent.futures.Future[Answer] | None = None
        self._late = False
        self._rests_until = 0.0

    @property
    def pending(self) -> bool:
        return self._future is not None and not self._future.done()

    @property
    def awaited(self) -> concurrent.futures.Future[Answer] | None:
        """The question, unless a report has gone without its answer already."""
        return None if self._late else self._future

    def ask(self) -> None:
        """Ask the driver, unless it is still at the question before, or rests after a late answer:
        a hung one costs one thread, however often the host is scanned.
        """
        if self._future is None and time.monotonic() >= self._rests_until:
            self.begun = time.monotonic()
            self._future = _ask(self.name, self._driver)

    def leave(self) -> None:
        """Report without its answer; as soon as it comes there is another report."""
        if self._future is not None and not self._late:
            self._late = True
            self._future.add_done_callback(lambda _: self._woken())

    def take(self, rest: float) -> None:
        """Take in the answer, if there is one.

        :param rest: for how many seconds the driver is not asked after a late answer.
        """
        future = self._future
        if future is None or not future.done():
            return
        if self._late:
            self._rests_until = time.monotonic() + rest
        self._future, self._late, self.answered = None, False, True
        self.looks += 1
        if error := future.exception():
            self.devices = []
            self.state = State('degraded', f'discover() failed: {_tell(error)}')
            return
        found, notes, complete = future.result()
        self.devices, complaints = contract.check(found)
        for device in self.devices:
            for deployable in device.deployables:
                deployable.driver_name = self.name
        # A trait that was dropped costs itself; a device that was left out may be there for all
        # we know, and must not count as gone.
        whole = isinstance(found, list | tuple) and len(self.devices) == len(found)
        state = 'ok' if whole and not notes else 'degraded'
        reason = '; '.join([*notes, *complaints])
        self.state = State(state, reason, complete=whole and complete and state != 'ok')


def idle(conf: cfg.ConfigOpts) -> list[str]:
    """The names of drivers that packages of others have installed, and that are not enabled."""
    installed = metadata.entry_points(group=NAMESPACE)
    own = metadata.distribution('cyborg-lite').entry_points
    shipped = {point.name for point in own if point.group == NAMESPACE}
    return sorted({point.name for point in installed} - shipped - {*conf.agent.enabled_drivers})


class Drivers:
    """The enabled drivers of a host."""

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        host: driver.Host,
        woken: collections.abc.Callable[[], None] = lambda: None,
    ) -> None:
        """Load the drivers that are enabled.

        :param woken: called when a driver answers after a report had to go without.
        """
        self._conf = conf
        self._host = host
        self._woken = woken
        self._states: dict[str, State] = {}
        self._scanners: dict[str, Scanner] = {}
        self._load()

    def _load(self) -> None:
        names = self._conf.agent.enabled_drivers
        for name in sorted(self._conf.agent.expected_devices.keys() - {*names}):
            LOG.warning(
                '[agent] expected_devices names %s, which [agent] enabled_drivers lacks: nothing '
                'is expected of it', name,
            )  # fmt: skip
        missing: list[str] = []
        for namespace in (NAMESPACE, UPSTREAM_NAMESPACE):
            wanted = [name for name in names if name not in self._scanners | self._states]
            manager: typing.Any = named.NamedExtensionManager(
                namespace,
                wanted,
                on_load_failure_callback=self._refuse,
                on_missing_entrypoints_callback=missing.extend,
                warn_on_missing_entrypoint=False,
            )
            for extension in manager:
                self._start(extension.name, extension.plugin)
        for name in names:
            if name not in self._scanners | self._states:
                installed = sorted({point.name for point in metadata.entry_points(group=NAMESPACE)})
                near = difflib.get_close_matches(name, installed, 1)
                hint = f'did you mean {near[0]}?' if near else f'there are {", ".join(installed)}'
                self._degrade(name, f'no entry point of that name in the group {NAMESPACE}: {hint}')

    def _start(self, name: str, plugin: typing.Any) -> None:
        """Make the driver, if it is one: the contract is a class, not a group's name."""
        if not (isinstance(plugin, type) and issubclass(plugin, driver.Driver)):
            self._degrade(
                name,
                f'{plugin.__module__} does not derive from cyborg_lite.driver.Driver: what its '
                'discover() returns cannot be reported',
            )
            return
        try:
            self._scanners[name] = Scanner(name, plugin(self._host, self._conf), self._woken)
        except Exception as error:
            self._degrade(name, f'it does not start: {_tell(error)}')

    def _refuse(self, _manager: object, entry_point: typing.Any, error: BaseException) -> None:
        self._degrade(entry_point.name, f'it does not load: {_tell(error)}')

    def _degrade(self, name: str, reason: str) -> None:
        self._set(name, State('degraded', reason))

    def _set(self, name: str, state: State) -> None:
        state.reason = state.reason[:1000]
        if self._states.get(name) != state:
            LOG.log(
                log.INFO if state.state == 'ok' else log.WARNING,
                'Host %s: driver %s is %s',
                *(self._host.name, name, state.words),
            )
        self._states[name] = state

    @property
    def _limit(self) -> float:
        """How long a driver may take before it is degraded, in seconds."""
        return float(min(self._conf.agent.driver_timeout, self._conf.agent.report_interval))

    @property
    def deadline(self) -> float:
        """When something is to be said, or done, because a driver has not answered by then."""
        pending = [scanner for scanner in self._scanners.values() if scanner.pending]
        limits = (self._limit, self._conf.agent.driver_timeout)
        times = [scanner.begun + limit for scanner in pending for limit in limits]
        return min((each for each in times if each > time.monotonic()), default=math.inf)

    @property
    def settled(self) -> bool:
        """Whether each driver has answered once, or has had its time to."""
        limit = time.monotonic() - self._conf.agent.driver_timeout
        return all(s.answered or s.begun <= limit for s in self._scanners.values())

    def discover(self, anew: bool = True, patience: float | None = None) -> Findings:
        """What the drivers find, asked at the same time; one that fails or is late harms no other.

        One that has not answered is waited for once, for at most half an interval, so that the
        report is not late. What it answered before stands until it has had its time.

        :param anew: ask them; else only take in what they have answered meanwhile.
        :param patience: how long to wait for answers, in seconds.
        """
        scanners = self._scanners.values()
        interval = self._conf.agent.report_interval
        if patience is None:
            patience = min(self._limit, interval / 2)
        for scanner in scanners if anew else ():
            scanner.ask()
        concurrent.futures.wait([s.awaited for s in scanners if s.awaited], patience)
        devices: list[model.Device] = []
        owners: dict[tuple[str, str], str] = {}
        names = self._conf.agent.enabled_drivers
        # Their order decides whose a device is that two of them found.
        for name in names:
            if name in self._scanners:
                self._scanners[name].take(interval)
                devices += self._answer(self._scanners[name], owners, patience)
        looks = {name: scanner.looks for name, scanner in self._scanners.items()}
        return Findings(devices, {name: self._states[name] for name in names}, looks)

    def _answer(
        self, scanner: Scanner, owners: dict[tuple[str, str], str], patience: float
    ) -> list[model.Device]:
        """What is reported of one driver.

        :param owners: whose is what the drivers before it claim.
        """
        if scanner.pending:
            scanner.leave()
        reason = self._delay(scanner, patience)
        if reason:
            self._degrade(scanner.name, reason)
            kept: list[model.Device] = []
        else:
            kept = self._share(scanner, owners)
        owners.update(dict.fromkeys(scanner.claims - owners.keys(), scanner.name))
        return kept

    def _delay(self, scanner: Scanner, patience: float) -> str:
        """Why a driver counts as late; empty if it does not."""
        if not scanner.pending:
            return ''
        if time.monotonic() - scanner.begun >= self._limit:
            return f'no answer within {self._limit:g} s'
        return '' if scanner.answered else f'no answer within {patience:g} s'

    def _share(self, scanner: Scanner, owners: dict[tuple[str, str], str]) -> list[model.Device]:
        """The devices of a driver that no driver before it claims."""
        kept: list[model.Device] = []
        reasons = [scanner.state.reason] if scanner.state.reason else []
        claims: contract.Seen = set()
        for device in scanner.devices:
            taken: contract.Seen = set()
            contract.check([device], taken)
            if clash := taken & owners.keys():
                reasons.append(
                    f'device {device.address} is left out: driver {owners[min(clash)]} has it'
                )
            else:
                kept.append(device)
                claims |= taken
        # A driver that is not well may have missed a card, which is no other driver's then.
        well = scanner.state.state == 'ok' or scanner.state.complete
        scanner.claims = claims if well else scanner.claims | claims
        found = dataclasses.replace(scanner.state, reason='; '.join(reasons), devices=len(kept))
        self._set(scanner.name, self._judged(scanner.name, found))
        return kept

    def _judged(self, name: str, found: State) -> State:
        """The state of a driver that has answered: degraded if it lacks expected devices."""
        expected = self._conf.agent.expected_devices.get(name, 0)
        if found.devices >= expected:
            return found
        lack = f'it finds {found.devices} of the {expected} expected devices'
        reason = '; '.join(filter(None, (lack, found.reason)))
        complete = found.complete or found.state == 'ok'
        return dataclasses.replace(found, state='degraded', reason=reason, complete=complete)


def _ask(name: str, each: driver.Driver) -> concurrent.futures.Future[Answer]:
    """Run discover() in a daemon thread: a pool would wait for a hung one at exit."""
    future: concurrent.futures.Future[Answer] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result((*each.look(), each.complete))
        except BaseException as error:  # SystemExit, too, ends the driver's thread only
            future.set_exception(error)

    threading.Thread(target=run, name=f'discover-{name}', daemon=True).start()
    return future


def _tell(error: BaseException) -> str:
    return f'{type(error).__name__}: {error}'[:500]
