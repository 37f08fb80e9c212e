# SPDX-License-Identifier: Apache-2.0
"""The check accepts possible histories, and finds impossible ones."""

import random

import hypothesis
from hypothesis import strategies
import pytest

from tests.soak import history

PROVIDERS = {'rp-1': ['one 0', 'one 1'], 'rp-2': ['two 0']}
CLIENTS = 3
Seen = history.Seen


class World:
    """A correct service, and its clients, which do not always get an answer.

    An operation takes effect at one time between request and answer; without an answer it does so
    at any time after the request, or never.
    """

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.history: list[history.Operation] = []
        self.arqs: dict[str, Seen] = {}
        self.disabled: set[str] = set()
        self.loose: list = []
        self._now = 0.0

    def step(self) -> None:
        client = self.draw.randrange(CLIENTS)
        if self.loose and self.draw.random() < 0.3:
            self.loose.pop(self.draw.randrange(len(self.loose)))()
        mine = [f'arq-{client}-{n}' for n in range(2)]
        arq = self.draw.choice(mine)
        kinds = ['bind', 'bind', 'read', 'unbind', 'list', 'delete', 'disable', 'enable']
        kind = self.draw.choice(kinds) if arq in self.arqs else 'create'
        getattr(self, f'_{kind}')(client, arq)

    def _ask(self, operation, effect, answered=0.8):
        operation.invoked = self._tick()
        self.history.append(operation)
        answered = self.draw.random() < answered
        if answered or self.draw.random() < 0.3:
            done = effect()
        else:
            self.loose.append(effect)
            done = False
        if answered:
            operation.outcome = 'ok' if done else 'fail'
            operation.status = 200 if done else 404
        self._tick()
        operation.returned = self._tick()

    def _tick(self) -> float:
        self._now += 1
        return self._now

    def _make(self, kind, client, *arqs, **more):
        return history.Operation(client, kind, arqs, project='p', **more)

    def _create(self, client, arq):
        # Names are not reused.
        if any(arq in each.arqs for each in self.history):
            return

        def effect():
            self.arqs[arq] = Seen('Initial', project='p')
            return True

        self._ask(self._make('create', client, arq), effect, answered=1)

    def _bind(self, client, arq):
        provider = self.draw.choice(sorted(PROVIDERS))
        instance = f'instance-{self._now}'

        def effect():
            held = {seen.handle for seen in self.arqs.values()}
            free = [each for each in PROVIDERS[provider] if each not in held]
            if arq not in self.arqs or self.arqs[arq].state == 'Bound':
                return False
            if not free or provider in self.disabled:
                return False
            self.arqs[arq] = Seen('Bound', free[0], provider, instance, 'p')
            return True

        made = self._make('bind', client, arq, providers=(provider,), instance=instance)
        self._ask(made, effect)
        if made.outcome == 'fail' and self.arqs.get(arq, Seen('')).state == 'Bound':
            made.outcome = 'unknown'  # clients record such a conflict so

    def _read(self, client, arq):
        made = self._make('read', client, arq)

        def effect():
            if arq in self.arqs:
                made.seen = {arq: self.arqs[arq]}
            return arq in self.arqs

        self._ask(made, effect, answered=1)

    def _list(self, client, arq):
        instance = self.arqs[arq].instance
        made = self._make('list', client, arq, instance=instance)

        def effect():
            made.seen = {a: s for a, s in self.arqs.items() if instance and s.instance == instance}
            return True

        self._ask(made, effect, answered=1)

    def _unbind(self, client, arq):
        def effect():
            if arq in self.arqs:
                self.arqs[arq] = Seen('Unbound', project='p')
            return arq in self.arqs

        self._ask(self._make('unbind', client, arq), effect)

    def _delete(self, client, arq):
        def effect():
            return self.arqs.pop(arq, None) is not None

        self._ask(self._make('delete', client, arq), effect)

    def _disable(self, client, arq):
        self._order('disable', self.disabled.add)

    def _enable(self, client, arq):
        self._order('enable', self.disabled.discard)

    def _order(self, kind, effect):
        provider = self.draw.choice(sorted(PROVIDERS))
        made = self._make(kind, CLIENTS, providers=(provider,))
        self._ask(made, lambda: [effect(provider)])

    def wrong(self) -> list[str]:
        return list(history.check(self.history, self.arqs))


def run(draw: random.Random, steps: int = 60) -> World:
    made = World(draw)
    for _ in range(steps):
        made.step()
    return made


@hypothesis.given(strategies.randoms(use_true_random=False))
@hypothesis.settings(max_examples=300)
def test_a_possible_history_is_accepted(draw):
    assert run(draw).wrong() == []


def lose(world: World) -> bool:
    """Lose a request that certainly exists."""
    deleted = {a for o in world.history if o.kind == 'delete' for a in o.arqs}
    for arq in world.arqs:
        if arq not in deleted:
            del world.arqs[arq]
            return True
    return False


def keep(world: World) -> bool:
    """Keep a deleted request."""
    for operation in world.history:
        if operation.kind == 'delete' and operation.outcome == 'ok':
            world.arqs[operation.arqs[0]] = Seen('Initial', project='p')
            return True
    return False


def release(world: World) -> bool:
    """Release a request that is bound by its last operation."""
    last = {}
    for operation in world.history:
        if operation.kind in ('bind', 'unbind', 'delete'):
            for arq in operation.arqs:
                last.setdefault(arq, []).append((operation.kind, operation.outcome))
    for arq, said in last.items():
        certain = [kind for kind, outcome in said if outcome != 'fail']
        if ('bind', 'ok') in said[-1:] and not {'unbind', 'delete'} & {*certain}:
            world.arqs[arq] = Seen('Unbound', project='p')
            return True
    return False


def show_a_stranger(world: World) -> bool:
    """Show a request of another project in a list."""
    for operation in world.history:
        for arq, seen in operation.seen.items():
            operation.seen = {arq: seen._replace(project='another')}
            return True
    return False


def bind_unasked(world: World) -> bool:
    """Bind a request without an operation."""
    for arq, seen in world.arqs.items():
        if seen.state == 'Initial':
            world.arqs[arq] = Seen('Bound', 'three 0', 'rp-3', 'nobody', 'p')
            return True
    return False


@pytest.mark.parametrize('mutate', [lose, keep, release, show_a_stranger, bind_unasked])
def test_an_impossible_history_is_found(mutate):
    applied = 0
    for seed in range(200):
        world = run(random.Random(seed))
        if mutate(world):
            applied += 1
            assert world.wrong(), seed
    assert applied > 20


def operation(kind, invoked, returned, outcome='ok', arq='a', client=0, **more):
    more = {'project': 'p'} | more
    return history.Operation(client, kind, (arq,), invoked, returned, outcome, **more)


def bound(arq, handle='one 0', instance=None):
    return {arq: Seen('Bound', handle, 'rp-1', instance or f'of {arq}', 'p')}


def holding(arq, since, client=0):
    """Create, bind and read a request; each takes a tenth of a second."""
    more = {'arq': arq, 'client': client}
    place = {'providers': ('rp-1',), 'instance': f'of {arq}'}
    yield operation('create', since, since + 0.1, **more)
    yield operation('bind', since + 0.2, since + 0.3, **more, **place)
    yield operation('read', since + 0.4, since + 0.5, **more, seen=bound(arq))


def gone(arq, invoked, returned, outcome='ok', client=0, status=404):
    return operation('delete', invoked, returned, outcome, arq, client, status=status)


def test_two_hold_one_at_the_same_time():
    told = [*holding('a', 0), *holding('b', 1, client=1), gone('a', 5, 6), gone('b', 5, 6)]
    [wrong] = history.check(told, {})
    assert wrong.startswith('I1: one 0 was held by a until 5')


def test_one_holds_after_another():
    told = [*holding('a', 0), gone('a', 0.8, 2), *holding('b', 1, client=1)]
    assert list(history.check(told, bound('b'))) == []


def test_two_hold_one_in_the_end():
    told = [*holding('a', 0), *holding('b', 1, client=1)]
    wrong = list(history.check(told, bound('a') | bound('b')))
    assert [each for each in wrong if each.endswith('in the end')]


def test_an_unanswered_release_may_have_happened():
    told = [*holding('a', 0), gone('a', 0.8, 9, 'unknown'), *holding('b', 1, client=1)]
    for final in ({}, {'a': Seen('Unbound', project='p')}):
        assert list(history.check(told, final | bound('b'))) == []


def test_a_delete_that_finds_nothing_follows_one_without_an_answer():
    told = [*holding('a', 0), gone('a', 1, 2, 'unknown'), gone('a', 3, 4, 'fail')]
    assert list(history.check(told, {})) == []
    told = [*holding('a', 0), gone('a', 3, 4, 'fail')]
    assert 'found nothing, and nobody had deleted it' in next(history.check(told, {}))


@pytest.mark.parametrize('status', [0, 409])
def test_a_delete_that_did_nothing_explains_none_that_finds_nothing(status):
    told = [*holding('a', 0), gone('a', 1, 2, 'fail', status=status), gone('a', 3, 4, 'fail')]
    assert [each for each in history.check(told, {}) if 'nobody had deleted it' in each]


def test_a_delete_is_not_refused():
    told = [*holding('a', 0), gone('a', 1, 2, 'fail', status=409)]
    [wrong] = history.check(told, bound('a'))
    assert wrong.endswith('was refused: 409')


def test_a_delete_that_was_not_sent_is_no_answer():
    told = [*holding('a', 0), gone('a', 1, 2, 'fail', status=0)]
    assert list(history.check(told, bound('a'))) == []


@pytest.mark.parametrize(('status', 'wrong'), [(0, False), (404, True)])
def test_a_read_that_was_not_sent_found_nothing_out(status, wrong):
    missed = operation('read', 1, 2, outcome='fail', status=status)
    told = [*holding('a', 0), missed]
    found = [each for each in history.check(told, bound('a')) if 'nobody had deleted it' in each]
    assert bool(found) == wrong


def test_a_lost_accelerator_is_found():
    told = [*holding('a', 0), operation('read', 1, 2, seen={'a': Seen('Unbound', project='p')})]
    assert 'found it Unbound, and it was bound' in next(history.check(told, bound('a')))


def test_an_accelerator_is_not_exchanged():
    told = [*holding('a', 0), operation('read', 1, 2, seen=bound('a', 'one 1'))]
    assert [each for each in history.check(told, bound('a', 'one 1')) if each.startswith('I2')]


def test_one_answer_does_not_show_an_accelerator_twice():
    both = bound('a', instance='i') | bound('b', instance='i')
    told = [operation('list', 1, 2, seen=both, instance='i')]
    assert 'showed one 0 2 times' in next(history.check(told, {}))


def test_a_bind_of_a_disabled_device_is_found():
    order = {'providers': ('rp-1',)}
    told = [operation('disable', 0, 1, arq='', **order), *holding('a', 2)]
    assert next(history.check(told, bound('a'))).startswith('I4')


@pytest.mark.parametrize('outcome', ['ok', 'unknown'])
def test_a_bind_after_a_possible_enable_is_accepted(outcome):
    order = {'providers': ('rp-1',), 'arq': ''}
    told = [
        operation('disable', 0, 1, **order),
        operation('enable', 1.5, 1.6, outcome, **order),
        *holding('a', 2),
    ]
    assert list(history.check(told, bound('a'))) == []


def test_another_project_s_request_is_out_of_reach():
    told = [*holding('a', 0), operation('trespass', 1, 2, client=1)]
    assert [each for each in history.check(told, bound('a')) if each.startswith('I7')]


def test_no_request_is_left_half_done():
    told = [operation('create', 0, 1)]
    assert list(history.check(told, {'a': Seen('BindStarted', project='p')}))


def held(arq, since, handle, client=0):
    """Like holding(), with a known accelerator."""
    *begun, read = holding(arq, since, client)
    provider = handle.partition(' ')[0]
    read.seen = {arq: Seen('Bound', handle, provider, f'of {arq}', 'p')}
    begun[1].providers = (provider,)
    return [*begun, read]


CARDS = {'rp-1': 'card 1', 'rp-2': 'card 1', 'rp-3': 'card 2'}


@pytest.mark.parametrize(
    ('one', 'other', 'promise'),
    [
        ('rp-1 00.0', 'rp-1 01.0', 'I14'),
        ('rp-1 01.0', 'rp-1 00.0', 'I14'),
        ('rp-1 00.0', 'rp-2 01.3', 'I14'),
        ('rp-1 01.0', 'rp-2 01.0', 'I1'),
        ('rp-1 01.0', 'rp-2 01.1', None),
        ('rp-1 01.0', 'rp-3 01.0', None),
        ('rp-1 00.0', 'rp-3 01.0', None),
    ],
)
def test_a_card_is_held_once_and_in_one_form(one, other, promise):
    """Under any name of its machine."""
    ends = [gone('a', 5, 6), gone('b', 5, 6)]
    told = [*held('a', 0, one), *held('b', 1, other, client=1), *ends]
    wrong = [each.partition(':')[0] for each in history.check(told, {}, CARDS)]
    assert wrong == [promise] * (promise is not None)


def test_a_card_is_held_in_one_form_after_another():
    told = [*held('a', 0, 'rp-1 00.0'), gone('a', 0.8, 2), *held('b', 1, 'rp-2 01.0', client=1)]
    final = {'b': Seen('Bound', 'rp-2 01.0', 'rp-2', 'of b', 'p')}
    assert list(history.check(told, final, CARDS)) == []


def away(what='database'):
    return [history.Outage(what, 1, 20)]


def asked(invoked, status, kind='unbind', outcome='unknown'):
    return operation(kind, invoked, invoked + 1, outcome, arq='', status=status)


@pytest.mark.parametrize('what', ['database', 'broker'])
def test_answers_during_an_outage_are_accepted(what):
    told = [asked(2, 503), asked(4, 0), asked(21, 202, outcome='ok')]
    assert list(history.check(told, {}, outages=away(what))) == []


@pytest.mark.parametrize(
    ('told', 'found'),
    [
        ([asked(2, 503), asked(4, 500), asked(21, 202, outcome='ok')], 'was told 500'),
        ([asked(2, 503), asked(4, 404, outcome='fail'), asked(21, 202, outcome='ok')], 'told 404'),
        ([asked(2, 0), asked(21, 202, outcome='ok')], 'T11: nobody was told'),
        ([asked(2, 503), asked(21, 503)], 'T11: nothing went well after'),
    ],
)
def test_wrong_answers_during_an_outage_are_found(told, found):
    [wrong] = history.check(told, {}, outages=away())
    assert found in wrong


def test_one_of_two_outages_may_have_no_errors():
    outages = [history.Outage('database', 1, 20), history.Outage('database', 30, 50)]
    told = [asked(2, 0), asked(31, 503), asked(51, 202, outcome='ok')]
    assert list(history.check(told, {}, outages=outages)) == []
    told[1].status = 0
    [wrong] = history.check(told, {}, outages=outages)
    assert 'nobody was told' in wrong


def test_reads_need_no_broker():
    told = [asked(2, 503), asked(4, 200, 'list', 'ok'), asked(21, 202, outcome='ok')]
    assert list(history.check(told, {}, outages=away('broker'))) == []
    assert list(history.check(told, {}, outages=away('database')))
