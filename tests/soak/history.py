# SPDX-License-Identifier: Apache-2.0
"""Check whether the answers to clients are possible for a service that keeps its promises.

Each client records its operations, their times, and their outcomes: ``ok``, ``fail`` (no effect)
or ``unknown`` (no clear answer).  An unknown operation may have happened, may happen at any later
time, or never; the others prove which states held, and when.  The check only uses histories: it
does not call the service.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import itertools
import math
import types
import typing

#: The status of a delete without an object.
NOT_FOUND = 404
#: The statuses during an outage; 0 means no answer.
AWAY = (0, 503)
#: The function that represents a whole card.
WHOLE = ' 00.0'
#: The operations that need a conductor.
CHANGES = ('create', 'bind', 'unbind', 'delete', 'allocate', 'reserve', 'renew', 'release')
#: The operations that need a server, by server.
NEEDS = {'broker': CHANGES, 'database': (*CHANGES, 'read', 'list', 'look')}
#: The stable states of a request.
STATES = ('Initial', 'Bound', 'Unbound', 'BindFailed')
RELEASES = ('unbind', 'delete')

Wrong = collections.abc.Iterator[str]


class Seen(typing.NamedTuple):
    """A request in an answer."""

    state: str
    #: the accelerator: its provider, and its device and function on the bus of the card, which do
    #: not depend on the card's address and the host's name; empty if none
    handle: str = ''
    provider: str = ''
    instance: str = ''
    project: str = ''


@dataclasses.dataclass
class Operation:
    """An operation of a client and its answer; times are of one monotonic clock."""

    client: int
    #: create, bind, unbind, delete, read one, list those of an instance; enable, disable; trespass
    #: is any on a request of another project; allocate, look, renew, release; reserve, and draw for
    #: a lease from a reservation; others are of neither
    kind: str
    arqs: tuple[str, ...] = ()
    invoked: float = 0.0
    returned: float = math.inf
    outcome: str = 'unknown'
    #: the status of the answer; 0 without one
    status: int = 0
    project: str = ''
    instance: str = ''
    #: the providers to bind from, by request; for a device, its providers
    providers: tuple[str, ...] = ()
    #: the result of a read, by request
    seen: dict[str, Seen] = dataclasses.field(default_factory=dict)
    #: the name of an allocation, the number of requested accelerators, and its shown state
    name: str = ''
    wanted: int = 0
    state: str = ''
    accelerators: tuple[str, ...] = ()
    #: whether a reservation starts in the run
    near: bool = False

    def __str__(self) -> str:
        asked = ' '.join([self.kind, *(arq[:8] for arq in self.arqs)])
        return f'client {self.client} {asked} [{self.invoked:.3f}, {self.returned:.3f}]'


History = collections.abc.Sequence[Operation]


class Outage(typing.NamedTuple):
    """The interval of an outage of a server."""

    server: str
    since: float
    until: float


class Hold(typing.NamedTuple):
    """An interval in which a request, or an allocation, certainly held an accelerator."""

    handle: str
    since: float
    until: float
    arq: str


def check(
    history: History,
    final: dict[str, Seen],
    cards: collections.abc.Mapping[str, str] = types.MappingProxyType({}),
    outages: collections.abc.Iterable[Outage] = (),
    others: collections.abc.Iterable[Hold] = (),
) -> Wrong:
    """The violations, as texts.

    :param final: every request of the idle service at the end.
    :param cards: the card of each provider, if known: under another name of its machine a card
        has another provider.
    :param others: the intervals of other holders.
    """
    yield from _through(list(outages), history)
    yield from _trespasses(history)
    yield from _twins(history)
    yield from _given_though_disabled(history)
    yield from _unknown_to_all(history, final)
    holds = list(others)
    for arq, operations in _by_arq(history).items():
        found = Story(arq)
        for operation in operations:
            yield from found.tell(operation)
        yield from found.tell(_last_look(arq, final))
        holds += found.held()
    yield from _overlaps(hold._replace(handle=_of_card(hold.handle, cards)) for hold in holds)


def _by_arq(history: History) -> dict[str, list[Operation]]:
    """The operations on each request by its client, in order."""
    found: dict[str, list[Operation]] = {}
    for operation in sorted(history, key=lambda each: each.invoked):
        if operation.kind == 'create' and operation.outcome == 'ok':
            found |= {arq: [] for arq in operation.arqs}
        if operation.kind != 'trespass':
            for arq in operation.arqs:
                if arq in found:
                    found[arq].append(operation)
    return found


def _last_look(arq: str, final: dict[str, Seen]) -> Operation:
    """A final read of a request by its client."""
    seen = {arq: final[arq]} if arq in final else {}
    outcome, status = ('ok', 200) if seen else ('fail', NOT_FOUND)
    return Operation(-1, 'read', (arq,), math.inf, math.inf, outcome, status, seen=seen)


class Story:
    """The certain facts of one request, updated by each of its operations."""

    def __init__(self, arq: str) -> None:
        self.arq = arq
        self.holds: list[Hold] = []
        #: the time since when it is certainly bound; None if that is uncertain
        self._since: float | None = None
        self._handle = ''
        self._instance = ''
        self._gone = False
        #: whether a bind, a release or a delete with an unknown result may still take effect
        self._may_bind = self._may_release = self._may_go = False

    def tell(self, operation: Operation) -> Wrong:
        yield from getattr(self, f'_{operation.kind}')(operation)

    def _create(self, operation: Operation) -> Wrong:
        yield from ()

    def _bind(self, operation: Operation) -> Wrong:
        if operation.outcome == 'ok':
            if self._gone:
                yield f'I6: {operation} went well after the request was deleted'
            if self._since is None and not self._may_release:
                self._since, self._handle = operation.returned, ''
            self._instance = operation.instance
        elif operation.outcome == 'unknown':
            self._may_bind = True
            self._instance = ''

    def _read(self, operation: Operation) -> Wrong:
        if operation.outcome == 'fail' and not operation.status:
            # It was not sent, and so it found nothing out.
            return
        if operation.outcome == 'fail':
            if not (self._gone or self._may_go):
                yield f'I6: {operation} found nothing, and nobody had deleted it'
            self._release(operation)
        elif operation.outcome == 'ok' and self._gone:
            yield f'I6: {operation} found what was deleted'
        elif operation.outcome == 'ok':
            yield from self._compare(operation, operation.seen[self.arq])

    def _list(self, operation: Operation) -> Wrong:
        """The list of an instance: a request that is not shown is not bound to it."""
        if operation.outcome != 'ok':
            return
        if self.arq in operation.seen:
            yield from self._read(operation)
        elif self._since is not None and self._instance == operation.instance:
            yield f'I6: {operation} did not show {self.arq}, and it was bound'

    def _compare(self, operation: Operation, seen: Seen) -> Wrong:
        if seen.state not in STATES:
            yield f'I6: {operation} found it {seen.state}'
        if seen.state != 'Bound':
            if self._since is not None:
                yield f'I6: {operation} found it {seen.state}, and it was bound'
            self._since = None
            return
        if self._since is None and not (self._may_bind or self._may_release):
            yield f'I6: {operation} found it Bound, and nobody had bound it'
        if self._instance and not self._may_release and seen.instance != self._instance:
            yield f'I6: {operation} found it with instance {seen.instance}'
        if self._handle and self._since is not None and seen.handle != self._handle:
            yield f'I2: {operation} found {seen.handle}, and it held {self._handle}'
        self._handle = seen.handle
        if self._since is None and not self._may_release:
            self._since = operation.returned

    def _unbind(self, operation: Operation) -> Wrong:
        yield from ()
        self._release(operation)
        self._may_release |= operation.outcome == 'unknown'
        self._instance = ''

    def _delete(self, operation: Operation) -> Wrong:
        if operation.outcome == 'fail' and operation.status != NOT_FOUND:
            # It had no effect, so it explains no later answer.
            if operation.status:
                yield f'I6: {operation} was refused: {operation.status}'
            return
        # Only a delete without an answer explains that there is nothing to delete.
        if operation.outcome == 'fail' and not (self._gone or self._may_go):
            yield f'I6: {operation} found nothing, and nobody had deleted it'
        self._release(operation)
        self._may_release |= operation.outcome == 'unknown'
        self._may_go |= operation.outcome == 'unknown'
        self._gone |= operation.outcome != 'unknown'

    def _release(self, operation: Operation) -> None:
        if self._since is not None and self._handle and self._since < operation.invoked:
            self.holds.append(Hold(self._handle, self._since, operation.invoked, self.arq))
        if operation.outcome != 'fail' or operation.kind == 'read':
            self._since, self._handle = None, ''

    def held(self) -> list[Hold]:
        """The certain holds, also the present one."""
        if self._since is None or not self._handle:
            return self.holds
        return [*self.holds, Hold(self._handle, self._since, math.inf, self.arq)]


def _of_card(handle: str, cards: collections.abc.Mapping[str, str]) -> str:
    provider, _, function = handle.rpartition(' ')
    return f'{cards.get(provider, provider)} {function}'


def _form(hold: Hold) -> str:
    """Whether a card is held as a whole: the first function of its bus represents it."""
    return 'whole' if hold.handle.endswith(WHOLE) else 'part'


def _overlaps(found: collections.abc.Iterable[Hold]) -> Wrong:
    """Accelerators that were held twice, and cards that were held in two forms, at one time."""
    holds = sorted(found)
    for card, each in itertools.groupby(holds, key=lambda hold: hold.handle.rpartition(' ')[0]):
        of_card = list(each)
        wholes = [hold for hold in of_card if _form(hold) == 'whole']
        for whole, other in itertools.product(wholes, of_card):
            since, until = max(whole.since, other.since), min(whole.until, other.until)
            if _form(other) == 'part' and since < until:
                yield (
                    f'I14: {card} was held as a whole by {whole.arq} from {whole.since:.3f}, and '
                    f'{other.handle} by {other.arq} from {other.since:.3f}'
                )
    for handle, each in itertools.groupby(holds, key=lambda hold: hold.handle):
        latest = None
        for hold in each:
            if latest and hold.since < latest.until and hold.arq != latest.arq:
                yield (
                    f'I1: {handle} was held by {latest.arq} until {latest.until:.3f}, and by '
                    f'{hold.arq} from {hold.since:.3f}'
                )
            if latest is None or hold.until > latest.until:
                latest = hold


def _through(outages: list[Outage], history: History) -> Wrong:
    """Operations during an outage fail with 503, and later ones succeed.

    In a single outage there may be no 503: each API may be stopped or dead during all of it.
    """
    statuses = collections.defaultdict(set)
    for outage in outages:
        concerned = [o for o in history if o.kind in NEEDS[outage.server]]
        within = [o for o in concerned if outage.since < o.invoked and o.returned < outage.until]
        statuses[outage.server] |= {operation.status for operation in within}
        for each in within:
            # A 404 for the name of an allocation needs no conductor.
            unneeded = (each.kind, each.status, outage.server) == ('release', NOT_FOUND, 'broker')
            if each.status not in AWAY and not unneeded:
                yield f'T11: {each} was told {each.status}, and the {outage.server} was away'
        after = [o for o in concerned if o.invoked > outage.until and o.kind in CHANGES]
        if not any(operation.outcome == 'ok' for operation in after):
            yield f'T11: nothing went well after the {outage.server} had been away'
    for server, told in statuses.items():
        if told == {0}:
            yield f'T11: nobody was told that the {server} was away'


def _twins(history: History) -> Wrong:
    """Answers that show one accelerator twice."""
    for operation in history:
        handles = collections.Counter(seen.handle for seen in operation.seen.values())
        for handle, count in handles.items():
            if handle and count > 1:
                yield f'I1: {operation} showed {handle} {count} times'


def _trespasses(history: History) -> Wrong:
    for operation in history:
        if operation.kind == 'trespass' and operation.outcome == 'ok':
            yield f'I7: {operation} reached a request of another project'
        for arq, seen in operation.seen.items():
            if seen.project != operation.project:
                yield f'I7: {operation} showed {arq} of project {seen.project}'


def _given_though_disabled(history: History) -> Wrong:
    disabled = collections.defaultdict(list)
    for provider, since, until in _disabled(history):
        disabled[provider].append((since, until))
    for operation in history:
        if operation.kind == 'bind' and operation.outcome == 'ok':
            for provider in operation.providers:
                for since, until in disabled[provider]:
                    if since < operation.invoked and operation.returned < until:
                        yield f'I4: {operation} was given {provider}, which was disabled'


def _disabled(history: History) -> collections.abc.Iterator[tuple[str, float, float]]:
    """The intervals in which providers were certainly disabled."""
    since: dict[str, float] = {}
    loose: set[str] = set()  # an enable with an unknown result may take effect at any time
    for operation in sorted(history, key=lambda each: each.invoked):
        for provider in operation.providers if operation.kind in ('disable', 'enable') else ():
            if operation.kind == 'enable':
                if provider in since:
                    yield provider, since.pop(provider), operation.invoked
                if operation.outcome == 'unknown':
                    loose.add(provider)
            elif operation.outcome == 'ok' and provider not in loose:
                since.setdefault(provider, operation.returned)
    yield from ((provider, begun, math.inf) for provider, begun in since.items())


def _unknown_to_all(history: History, final: dict[str, Seen]) -> Wrong:
    """At the end there are no unrequested binds, and no accelerator is held twice."""
    asked = {
        (arq, operation.instance, provider)
        for operation in history
        if operation.kind == 'bind' and operation.outcome != 'fail'
        for arq, provider in zip(operation.arqs, operation.providers, strict=True)
    }
    holders = collections.defaultdict(list)
    for arq, seen in final.items():
        if seen.state == 'Bound':
            holders[seen.handle].append(arq)
            if (arq, seen.instance, seen.provider) not in asked:
                yield f'I6: {arq} is Bound to {seen.instance} in the end, and nobody knows of it'
        if seen.state not in STATES:
            yield f'I6: {arq} is {seen.state} in the end'
    for handle, arqs in holders.items():
        if len(arqs) > 1:
            yield f'I1: {handle} is held by {", ".join(arqs)} in the end'
