# SPDX-License-Identifier: Apache-2.0
"""Whether what clients were told can be true of a service that keeps its promises.

Each client notes what it asked, when, and what came of it: ``ok``, ``fail`` (nothing was done) or
``unknown`` (no answer, or one that does not say).  What is unknown may have happened, may happen
at any time later, or never; from the rest follows what held for certain, and when.  A function of
histories alone: nothing here asks the service.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import itertools
import math
import types
import typing

#: How the answer of a delete says that there is nothing to delete.
NOT_FOUND = 404
#: What is answered while a server is away, or nothing.
AWAY = (0, 503)
#: The function that stands for a card as a whole.
WHOLE = ' 00.0'
#: What a client asks that the conductor has to do.
CHANGES = ('create', 'bind', 'unbind', 'delete', 'allocate', 'release')
#: What a client asks that a server is needed for.
NEEDS = {'broker': CHANGES, 'database': (*CHANGES, 'read', 'list', 'look')}
#: The states in which a request may be at rest.
STATES = ('Initial', 'Bound', 'Unbound', 'BindFailed')
RELEASES = ('unbind', 'delete')

Wrong = collections.abc.Iterator[str]


class Seen(typing.NamedTuple):
    """A request as the API showed it."""

    state: str
    #: the accelerator itself: its provider, and its device and function on the bus of the card,
    #: which stay wherever the card is, and whatever its host is called; empty if none
    handle: str = ''
    provider: str = ''
    instance: str = ''
    project: str = ''


@dataclasses.dataclass
class Operation:
    """What a client asked, and what it was told; times are of one monotonic clock."""

    client: int
    #: create, bind, unbind, delete, read one, list those of an instance; enable, disable; trespass
    #: is any on a request of another project; allocate, look, release; others are of neither
    kind: str
    arqs: tuple[str, ...] = ()
    invoked: float = 0.0
    returned: float = math.inf
    outcome: str = 'unknown'
    #: of the answer; 0 if none came
    status: int = 0
    project: str = ''
    instance: str = ''
    #: by request, where it is to be bound; of a device, those it has
    providers: tuple[str, ...] = ()
    #: what a read showed, by request
    seen: dict[str, Seen] = dataclasses.field(default_factory=dict)
    #: the name of an allocation, how many accelerators are wanted, and what was shown of it
    name: str = ''
    wanted: int = 0
    state: str = ''
    accelerators: tuple[str, ...] = ()

    def __str__(self) -> str:
        asked = ' '.join([self.kind, *(arq[:8] for arq in self.arqs)])
        return f'client {self.client} {asked} [{self.invoked:.3f}, {self.returned:.3f}]'


History = collections.abc.Sequence[Operation]


class Outage(typing.NamedTuple):
    """For so long a server was not there."""

    server: str
    since: float
    until: float


class Hold(typing.NamedTuple):
    """A request, or an allocation, certainly held an accelerator for this long."""

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
    """What is wrong, in words.

    :param final: every request of the service once it has come to rest.
    :param cards: by provider, the card that it is of, if that is known: one that is found under
        another name of its machine is of another provider.
    :param others: what was held by something else than these requests.
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
    """The operations on each request by who made it, in their order."""
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
    """The end of it all, as if the client had read its request once more."""
    seen = {arq: final[arq]} if arq in final else {}
    outcome, status = ('ok', 200) if seen else ('fail', NOT_FOUND)
    return Operation(-1, 'read', (arq,), math.inf, math.inf, outcome, status, seen=seen)


class Story:
    """What is certain of one request, as its operations are told one after another."""

    def __init__(self, arq: str) -> None:
        self.arq = arq
        self.holds: list[Hold] = []
        #: from when on it is certainly bound; None if that is not certain
        self._since: float | None = None
        self._handle = ''
        self._instance = ''
        self._gone = False
        #: whether a bind, a release or a delete is under way, for all we know, for ever
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
        """What an instance has: a request that is not shown is not bound to it."""
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
            # It did nothing, and so it explains nothing that is found later.
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
        """What it certainly held, and what it still does."""
        if self._since is None or not self._handle:
            return self.holds
        return [*self.holds, Hold(self._handle, self._since, math.inf, self.arq)]


def _of_card(handle: str, cards: collections.abc.Mapping[str, str]) -> str:
    provider, _, function = handle.rpartition(' ')
    return f'{cards.get(provider, provider)} {function}'


def _form(hold: Hold) -> str:
    """Whether a card is held as a whole: the first function of its bus stands for it."""
    return 'whole' if hold.handle.endswith(WHOLE) else 'part'


def _overlaps(found: collections.abc.Iterable[Hold]) -> Wrong:
    """What was held twice, and which card in two forms, at one time."""
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
    """What is asked while a server is away is told so, and what is asked later is done.

    In a single outage nobody may be told: each API may be stopped or dead for as long.
    """
    statuses = collections.defaultdict(set)
    for outage in outages:
        concerned = [o for o in history if o.kind in NEEDS[outage.server]]
        within = [o for o in concerned if outage.since < o.invoked and o.returned < outage.until]
        statuses[outage.server] |= {operation.status for operation in within}
        for each in within:
            # That there is no allocation of a name is found without a conductor.
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
    """One answer that shows one accelerator twice."""
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
    """Which provider was certainly disabled, from when to when."""
    since: dict[str, float] = {}
    loose: set[str] = set()  # an order to enable it may come at any time
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
    """Nothing is bound that nobody has asked for, and nothing is given twice in the end."""
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
