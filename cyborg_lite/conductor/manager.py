# SPDX-License-Identifier: Apache-2.0
"""What may be asked of a conductor over RPC: each is one function, in one transaction."""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import threading
import time
import typing
import uuid as uuidlib

from oslo_config import cfg
from oslo_db import api as db_api
from oslo_db import exception as db_exception
from oslo_log import log
import oslo_messaging as messaging
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import exc as orm_exception

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite.clients import keystone
from cyborg_lite.conductor import allocating
from cyborg_lite.conductor import binding
from cyborg_lite.conductor import group_commit
from cyborg_lite.conductor import healing
from cyborg_lite.conductor import heartbeat
from cyborg_lite.conductor import hosts
from cyborg_lite.conductor import inventory
from cyborg_lite.conductor import journal
from cyborg_lite.conductor import leases
from cyborg_lite.conductor import limits
from cyborg_lite.conductor import notices
from cyborg_lite.conductor import orders
from cyborg_lite.conductor import outbox
from cyborg_lite.conductor import profiles
from cyborg_lite.conductor import queue
from cyborg_lite.conductor import quotas
from cyborg_lite.conductor import reasons
from cyborg_lite.conductor import releasing
from cyborg_lite.conductor import reports
from cyborg_lite.conductor import reserving
from cyborg_lite.conductor import serving
from cyborg_lite.conductor import waiting
from cyborg_lite.db import engine
from cyborg_lite.db import query
from cyborg_lite.db import quotas as quotas_

LOG = log.getLogger(__name__)

#: How long what a probe has found stands, in seconds: many may ask, and each one writes.
FRESH = 1.0
#: How often a transaction is tried that lacks limits.
TRIES = 5

_NOTE = sa.insert(model.Call)

Answer = typing.TypeVar('Answer')
Function = collections.abc.Callable[..., Answer]


#: Carries out work in a transaction; returns its answer.
Transact = collections.abc.Callable[[group_commit.Work], typing.Any]


def _within(
    transaction: collections.abc.Callable[[], contextlib.AbstractContextManager[orm.Session]],
    work: group_commit.Work,
) -> typing.Any:
    with transaction() as session:
        return work(session)


def _lost_race(error: Exception) -> bool:
    """Whether a constraint stopped us, or a row went that we were to change: tried again, the plain
    check in front of it will tell.
    """
    lost = (db_exception.DBDuplicateEntry, db_exception.DBReferenceError)
    return isinstance(error, (*lost, orm_exception.StaleDataError))


def _named(function: Function[Answer]) -> Function[Answer]:
    """Say that the database is away by an error of ours: others do not cross the bus."""

    @functools.wraps(function)
    def call(*args: typing.Any, **kwargs: typing.Any) -> Answer:
        try:
            return function(*args, **kwargs)
        except tuple(engine.AWAY) as error:
            raise exception.DatabaseAway(reason='a conductor cannot reach it') from error

    return call


def _transaction(function: Function[Answer]) -> Function[Answer]:
    """Make a method of ``function(session, context, ...)``: one transaction, tried again if
    another one made it fail.
    """

    @functools.wraps(function)
    # The caller gets a CyborgError as the answer: it is no failure of the conductor.
    @messaging.expected_exceptions(exception.CyborgError)
    @_named
    @db_api.wrap_db_retry(
        max_retries=20,
        retry_interval=0.05,
        max_retry_interval=1,
        jitter=True,
        retry_on_deadlock=True,
        retry_on_disconnect=True,
        exception_checker=_lost_race,
    )
    def call(self: Manager, ctxt: context.RequestContext, **kwargs: typing.Any) -> Answer:
        return self.with_limits(self._write, lambda session: function(session, ctxt, **kwargs))

    return typing.cast('Function[Answer]', call)


class _DoneBefore(Exception):
    """The call that is carried out was carried out before."""


def _once(function: Function[Answer]) -> Function[Answer]:
    """Make a method as above of a function that must not be carried out twice for one call.

    The database may commit and not say so, and the bus may deliver a message again. A second time
    the function finds its own row there already, or gone: it is then answered as the first time.
    Another release may have carried it out the first time: its answer is read if it has our form.
    """
    form = function.__annotations__['return']

    def noted(
        session: orm.Session, ctxt: context.RequestContext, call: str, **kwargs: typing.Any
    ) -> Answer:
        answer = function(session, ctxt, **kwargs)
        session.flush()
        try:
            query.run(session, _NOTE, {'uuid': call, 'answer': {'form': form, 'answer': answer}})
        except db_exception.DBDuplicateEntry:
            raise _DoneBefore from None
        return answer

    method, find = _transaction(noted), _transaction(_find_call)

    @functools.wraps(function)
    def once(self: Manager, ctxt: context.RequestContext, **kwargs: typing.Any) -> Answer:
        call = ctxt.call or str(uuidlib.uuid4())
        try:
            return method(self, ctxt, call=call, **kwargs)
        except (messaging.ExpectedException, _DoneBefore):
            found = find(self, ctxt, call=call)
            if not found:
                raise
            return typing.cast('Answer', _read(found[0], form))

    return typing.cast('Function[Answer]', once)


def _find_call(session: orm.Session, _ctxt: context.RequestContext, call: str) -> list[typing.Any]:
    """The answer to a call that was carried out before, alone in a list; none if it was not."""
    return list(session.scalars(sa.select(model.Call.answer).where(model.Call.uuid == call)))


@messaging.expected_exceptions(exception.CyborgError)
def _read(kept: typing.Any, form: str) -> typing.Any:
    """The answer in what is kept of a call.

    :param form: the type of the answers of this release, as it is written.
    :raises cyborg_lite.exception.AnswerUnknown: when it is of another form.
    """
    if form == 'None':
        return None
    if not isinstance(kept, dict) or kept.get('form') != form:
        raise exception.AnswerUnknown
    return kept['answer']


def _exposed(function: Function[Answer], order: journal.Order) -> Function[Answer]:
    """A method that callers may ask for by its name, and that is carried out once for a call.

    :param order: what it does, for the log: see journal.logged.
    """
    method = journal.logged(order)(_once(function))
    return typing.cast('Function[Answer]', messaging.expose(method))


class Manager:
    """A conductor, as the API asks it; any number of them work on one database."""

    target = messaging.Target(version='1.1')

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        database: engine.Database,
        notifier: messaging.Notifier | None = None,
        look: collections.abc.Callable[[model.Facts], None] | None = None,
    ) -> None:
        """
        :param notifier: sends notifications; None if nobody is to be notified.
        :param look: has the agent of a host look at its processes: see outbox.Sender.
        """
        self.conf = conf
        notify = None if notifier is None else notices.Sender(notifier, database).send
        self.outbox = outbox.Sender(conf, database, hosts.announce, self._serve_queue, notify, look)
        self.healer = healing.Healer(conf, self.outbox)
        self.reports = reports.Reports(conf, self._is_unchanged, self._receive)
        calls = leases.Calls(
            *(self._lease, self._leases, self._end_lease, self._holders, self._contain),
            self.outbox.tell,
        )
        self.leases = leases.Leases(conf, calls)
        #: what is known of the limits that Keystone keeps; None if our table has them
        self.limits: limits.Limits | None = None
        if conf.quota.driver == 'keystone':
            self.limits = limits.Limits(keystone.Limits(conf), conf.quota.cache_time)
        self._database = database
        self._write: Transact = functools.partial(_within, self.outbox.session)
        if engine.has_one_writer(database.engine):
            self._write = group_commit.GroupCommit(self.outbox.session).run
        self._probing = threading.Lock()
        self._probed = -FRESH

    @messaging.expose
    @messaging.expected_exceptions(exception.CyborgError)
    @_named
    def probe(self, ctxt: context.RequestContext) -> None:
        """Return if the database can be written."""
        with self._probing:
            if time.monotonic() - self._probed >= FRESH:
                self._database.probe()
                self._probed = time.monotonic()

    @messaging.expose
    @messaging.expected_exceptions(exception.CyborgError)
    def show_limits(self, ctxt: context.RequestContext, project: str) -> dict[str, int]:
        """The limits of a project that Keystone keeps."""
        return self.read_limits([project])[project]

    def with_limits(
        self, transact: Transact, work: collections.abc.Callable[[orm.Session], Answer]
    ) -> Answer:
        """The answer of work in a transaction; limits that it lacks are read between its tries."""

        def limited(session: orm.Session) -> Answer:
            session.info[quotas_.ELSEWHERE] = self.limits
            return work(session)

        for _ in range(TRIES):
            try:
                return typing.cast('Answer', transact(limited))
            except limits.Unread as unread:
                self.read_limits(unread.projects)
        raise exception.LimitsAway(reason='they are read too slowly to be used')

    def read_limits(self, projects: collections.abc.Collection[str]) -> dict[str, dict[str, int]]:
        if self.limits is None:
            raise exception.Conflict(reason='Limits are kept here: [quota] driver is database.')
        return self.limits.read(projects)

    delete_device = _exposed(orders.delete_device, 'Delete device {uuid}')
    delete_host = _exposed(hosts.delete, 'Delete host {name}')
    rename_host = _exposed(hosts.rename, 'Rename host {name} to {to}')
    create_attribute = _exposed(
        orders.add_attribute, 'Add attribute {key} = {value} to deployable {deployable}'
    )
    delete_attribute = _exposed(orders.delete_attribute, 'Delete attribute {uuid}')
    create_device_profile = _exposed(profiles.create, 'Create device profile {profile[name]}')
    delete_device_profile = _exposed(profiles.delete, 'Delete device profile {id}')
    create_arqs = _exposed(binding.create, 'Create the ARQs of device profile {profile}')
    unbind = _exposed(binding.unbind, journal.unbind)
    delete_arqs = _exposed(binding.delete, journal.delete)
    update_quota = _exposed(quotas.update, 'Set limits {limits} of project {project}')
    delete_quota = _exposed(quotas.delete, 'Delete the quota of project {project}')
    renew_allocation = _exposed(releasing.renew, 'Renew allocation {uuid} for {lease} seconds')
    release_allocation = _exposed(releasing.release, 'Release allocation {uuid}')

    _is_unchanged = _transaction(heartbeat.is_unchanged)
    _receive = _transaction(inventory.receive)
    _set_device_status = _transaction(orders.set_status)
    _bind = _transaction(binding.bind)
    _fail = _transaction(binding.fail)
    _delete_arqs_of = _transaction(binding.delete_of)
    _create_allocation = _once(allocating.create)
    _create_reservation = _once(reserving.create)
    _start_reservation = _transaction(reserving.start)
    _serve = _transaction(serving.serve)
    _lease = _once(leases.create)
    _leases = _transaction(leases.rows)
    _end_lease = _transaction(leases.end)
    _holders = _transaction(leases.holders)
    _contain = _transaction(leases.contain)

    @messaging.expose
    @journal.logged(journal.set_status)
    def set_device_status(self, ctxt: context.RequestContext, **order: typing.Any) -> None:
        """Enable or disable a device; what is withdrawn so Placement knows before the answer."""
        self.outbox.tell(self._set_device_status(ctxt, **order))

    @messaging.expose
    @journal.logged(journal.allocate)
    def create_allocation(self, ctxt: context.RequestContext, request: allocating.Request) -> str:
        """Allocate; Placement knows what is held before the answer."""
        policy = self.conf.conductor.placing
        uuid, providers = self._create_allocation(ctxt, request=request, policy=policy)
        self.outbox.tell(providers)
        return uuid

    @messaging.expose
    @journal.logged(journal.reserve)
    def create_reservation(self, ctxt: context.RequestContext, request: allocating.Request) -> str:
        """Keep accelerators for later.

        It is a method of its own: a conductor of the release before would allocate them at once.
        """
        policy = self.conf.conductor.placing
        uuid, _ = self._create_reservation(ctxt, request=request, policy=policy)
        return uuid

    def _serve_queue(self, message: model.Facts) -> None:
        if message.get('late'):
            self._start_reservations()
        self._serve_all()
        if message.get('joined'):
            with self.outbox.session() as session:
                queue.look_again(session)

    def _serve_all(self) -> None:
        """Serve the allocations that wait, one after the other, until none can be served."""
        over: dict[str, str] = {}
        while self._serve(context.service(), policy=self.conf.conductor.placing, over=over):
            pass

    def _start_reservations(self) -> None:
        """Start the reservations whose time has come, as far as they can be."""
        with self._database.reader() as session:
            ids = reserving.due(session)
        if ids:
            # A lease that ends as a reservation starts is not in its way.
            self.healer.expire()
        policy, grace = self.conf.conductor.placing, self.conf.conductor.reservation_grace
        for id in ids:
            try:
                self._start_reservation(context.service(), id=id, policy=policy, grace=grace)
            except Exception:  # others can start; the healer has this one tried again
                LOG.exception('Reservation %d cannot start yet', id)

    @messaging.expose
    @messaging.expected_exceptions(exception.CyborgError)
    @_named
    def check_allocation(
        self, ctxt: context.RequestContext, request: allocating.Request
    ) -> reasons.Explanation:
        policy = self.conf.conductor.placing
        check = reserving.check if 'starts_at' in request else allocating.check
        return self._look(lambda session: check(session, ctxt, request, policy))

    @messaging.expose
    @messaging.expected_exceptions(exception.CyborgError)
    @_named
    def explain_waiting(self, ctxt: context.RequestContext, uuid: str) -> str | None:
        """Why an allocation waits now; None where its stored reason says so."""
        return self._look(lambda session: waiting.explain(session, ctxt, uuid))

    def _look(self, work: collections.abc.Callable[[orm.Session], Answer]) -> Answer:
        """The answer of work that writes nothing."""
        return self.with_limits(functools.partial(_within, self._database.reader), work)

    @messaging.expose
    def report(self, ctxt: context.RequestContext, **report: typing.Any) -> None:
        """Agents of the release before ask for this here, beside all else."""
        self.reports.report(ctxt, **report)

    @messaging.expose
    @journal.logged(journal.bind)
    def bind(
        self, ctxt: context.RequestContext, wishes: list[binding.Wish], seen: binding.Seen = None
    ) -> None:
        """Bind all, or note that none could be: in a transaction of its own, as the first is
        undone.
        """
        try:
            self._bind_vouched(ctxt, wishes, seen)
        except messaging.ExpectedException as expected:
            error = expected.exc_info[1]
            if isinstance(error, exception.CannotBind):
                self._fail(ctxt, wishes=wishes, seen=seen, reason=error.message)
            raise

    def _bind_vouched(
        self, ctxt: context.RequestContext, wishes: list[binding.Wish], seen: binding.Seen
    ) -> None:
        """Bind; where a trait is missing that we do not know of, Placement may know it: there an
        operator adds traits to our providers, and by them Placement has chosen.
        """
        try:
            self._bind(ctxt, wishes=wishes, seen=seen)
        except messaging.ExpectedException as expected:
            if not isinstance(expected.exc_info[1], exception.TraitsMissing):
                raise
            vouched = self.outbox.traits({wish['device_rp_uuid'] for wish in wishes})
            if not vouched:
                raise
            self._bind(ctxt, wishes=wishes, seen=seen, vouched=vouched)

    @messaging.expose
    @journal.logged('Delete the ARQs of instance {instance}')
    def delete_arqs_of(
        self, ctxt: context.RequestContext, instance: str, seen: binding.Seen = None
    ) -> None:
        """A second time there is nothing left to do: that needs no note."""
        self._delete_arqs_of(ctxt, instance=instance, seen=seen)

    @messaging.expose
    @journal.logged('Free the accelerators of instance {instance}')
    def free_instance(
        self, ctxt: context.RequestContext, instance: str, seen: binding.Seen
    ) -> None:
        """Delete the requests of an instance that is gone."""
        self._refuse_living(instance)
        self.delete_arqs_of(ctxt, instance=instance, seen=seen)

    @messaging.expected_exceptions(exception.CyborgError)
    def _refuse_living(self, instance: str) -> None:
        """Nova is asked outside a transaction: nothing is locked meanwhile."""
        if self.outbox.knows(instance):
            raise exception.Conflict(
                reason=f'Instance {instance} exists: use the Compute API to manage its '
                'accelerators.'
            )
