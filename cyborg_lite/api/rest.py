# SPDX-License-Identifier: Apache-2.0
"""Common code of all resources: exposed methods and lists."""

from __future__ import annotations

import collections.abc
import contextvars
import dataclasses
import functools
import http
import inspect
import json
import threading
import typing
import urllib.parse

from oslo_config import cfg
from oslo_log import log
import oslo_messaging as messaging
import sqlalchemy as sa
import webob
from webob import acceptparse
import webob.exc
from wsme import api as wsme_api
from wsme import exc as wsme_exc
from wsme import types as wtypes
from wsme.rest import args as wsme_args

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import model
from cyborg_lite import rpc
from cyborg_lite.api import types
from cyborg_lite.db import engine
from cyborg_lite.db import query

LOG = log.getLogger(__name__)


@dataclasses.dataclass
class Call:
    """One request: the caller, the microversion, the content, and the means to answer it."""

    context: context.RequestContext
    version: model.Version
    #: the HTTP method; GET for HEAD
    method: str
    path: str
    #: the query arguments of the URL
    query: webob.multidict.GetDict
    headers: collections.abc.Mapping[str, str]
    body: bytes
    content_type: str
    conf: cfg.ConfigOpts
    database: engine.Database
    bus: rpc.Peers
    #: the URL of the API's root, without a slash at its end
    root: str
    #: limits how many requests wait at the same time
    waiting: threading.Semaphore
    #: whether the web server is stopping: a waiting request ends then
    stopping: collections.abc.Callable[[], bool]
    #: the token of the caller, as keystoneauth takes it; None without Keystone
    token: typing.Any = None
    #: the declaration of the method that answers
    operation: Operation = dataclasses.field(init=False)
    #: the status of the answer
    status: int = 200

    @property
    def conductor(self) -> rpc.Peer:
        return self.bus.conductor(self.context, timeout=self.conf.api.response_timeout)


_CALL: contextvars.ContextVar[Call] = contextvars.ContextVar('call')


def call() -> Call:
    """The request that this thread answers."""
    return _CALL.get()


#: The reason in words, by the class of an error; the first match is used.
_AWAY: dict[type[Exception], str] = {
    messaging.MessagingTimeout: 'No conductor answered in time',
    messaging.MessageUndeliverable: 'No conductor is running',
    messaging.MessageDeliveryFailure: 'The message bus is away, or takes no messages',
    **engine.AWAY,
}


def away(error: Exception) -> str | None:
    """What is unavailable, if this is what the error means."""
    for kind, text in _AWAY.items():
        if isinstance(error, kind):
            return f'{text}. Try again.'
    return error.message if isinstance(error, exception.DatabaseAway) else None


#: the arguments of the path or the body only: WSME would also take them from the query
KEYS = {'id', 'uuid', '__body__'}
LINKS: types.Schema = {
    'type': 'array',
    'items': {
        'type': 'object',
        'required': ['rel', 'href'],
        'properties': {'rel': {'type': 'string'}, 'href': {'type': 'string', 'format': 'uri'}},
    },
}
#: the arguments that every list takes
PAGE = ('limit', 'marker', 'sort_key', 'sort_dir')


@dataclasses.dataclass(frozen=True)
class Operation:
    """The declaration of a method: it is used to serve requests, and in the OpenAPI document."""

    #: the method for wsme: its arguments in the URL, those of the path first
    definition: wsme_api.FunctionDefinition
    #: the status of an answer; it has no content if the method returns None
    status: int
    #: the JSON schema of the body, which the method reads by body()
    body: types.Schema | None
    #: whether it is a list: the argument ``page`` has the arguments of PAGE
    paged: bool
    #: more arguments in the URL: the argument ``wanted`` has them
    filters: tuple[str, ...]
    #: the key of the answer that has the method's result
    wrap: str | None
    #: the JSON schema of an answer that is neither a row nor a list of rows
    shows: types.Schema | None

    @property
    def arguments(self) -> list[wsme_api.FunctionArgument]:
        """The arguments in the URL: name, type, whether it must be given."""
        return typing.cast('list[wsme_api.FunctionArgument]', self.definition.arguments)


def expose(
    *kinds: typing.Any,
    status: int = 200,
    body: types.Schema | None = None,
    paged: bool = False,
    filters: dict[str, typing.Any] | None = None,
    wrap: str | None = None,
    shows: types.Schema | None = None,
) -> collections.abc.Callable[[typing.Any], typing.Any]:
    """Declare that a method serves requests, as Operation describes.

    :param kinds: the wsme types of the method's arguments in the URL.
    :param filters: more arguments in the URL, with their types: the argument ``wanted`` has them.
    """

    def decorate(method: typing.Any) -> typing.Any:
        more = dict.fromkeys(PAGE if paged else (), wtypes.text) | (filters or {})
        definition = _define(method, kinds, more)
        names = tuple(filters or ())
        method.operation = Operation(definition, status, body, paged, names, wrap, shows)
        return method

    return decorate


def answer(
    asked: Call, method: collections.abc.Callable[..., typing.Any], given: tuple[str, ...]
) -> webob.Response:
    """The answer of a method of a controller.

    :param given: the arguments in the path.
    """
    token = _CALL.set(asked)
    try:
        return _answer(asked, method, given)
    finally:
        _CALL.reset(token)


def _answer(
    asked: Call, method: collections.abc.Callable[..., typing.Any], given: tuple[str, ...]
) -> webob.Response:
    operation = asked.operation = method.operation  # type: ignore[attr-defined]
    # The method may set another status.
    asked.status = operation.status
    try:
        if not _accepts_json(asked.headers.get('Accept') or '*/*'):
            return plain_error(406)
        in_path = {each.name for each in operation.arguments[: len(given)]}
        for name in (KEYS | in_path).intersection(asked.query):
            raise wsme_exc.UnknownArgument(name)
        result = method(**_arguments(operation, given))
    except webob.exc.HTTPException as error:
        return plain_error(error.code)
    except Exception as raised:
        return _fault(raised)
    if result is None:
        return webob.Response(status=asked.status, content_type=None)
    shown = json.dumps({operation.wrap: result} if operation.wrap else result).encode()
    return webob.Response(shown, asked.status, content_type='application/json')


@functools.lru_cache(256)
def _accepts_json(accept: str) -> bool:
    if accept == '*/*' or accept.startswith('application/json'):
        return True
    return bool(acceptparse.create_accept_header(accept).acceptable_offers(['application/json']))


def plain_error(status: int, headers: dict[str, str] | None = None) -> webob.Response:
    return error_response(status, f'{http.HTTPStatus(status).description}.', headers)


def error_response(
    status: int, said: str | dict[str, typing.Any], headers: dict[str, str] | None = None
) -> webob.Response:
    """An error answer in upstream's form: JSON text within JSON.

    openstacksdk and Tempest read the inner object; upstream has always sent both.
    """
    made = webob.Response(status=status, content_type='application/json', charset='UTF-8')
    if isinstance(said, str):
        title = made.status.partition(' ')[2]
        said = {'code': status, 'title': title, 'description': said}
    made.body = json.dumps({'error_message': json.dumps(said)}).encode()
    made.headers.update(headers or {})
    return made


def _define(
    method: collections.abc.Callable[..., typing.Any],
    kinds: tuple[typing.Any, ...],
    more: dict[str, typing.Any],
) -> wsme_api.FunctionDefinition:
    """The definition of a method for wsme: its arguments in the URL."""
    spec = inspect.getfullargspec(method)
    optional = {*spec.args[len(spec.args) - len(spec.defaults or ()) :], *more}
    names = [name for name in spec.args[1:] if name not in ('page', 'wanted')]
    definition = wsme_api.FunctionDefinition(method)
    definition.set_options(None, {})
    definition.arguments = [
        wsme_api.FunctionArgument(name, kind, name not in optional, None)
        for name, kind in zip([*names, *more], [*kinds, *more.values()], strict=True)
    ]
    definition.resolve_types(wtypes.registry)
    return definition


def _arguments(operation: Operation, given: tuple[str, ...]) -> dict[str, typing.Any]:
    """The arguments of the URL, converted to their types."""
    query = call().query
    # A repeated argument is a list here: no type takes it.
    once = query.mixed()
    further = [once.get(each.name) for each in operation.arguments[len(given) :]]
    try:
        _, found = wsme_args.get_args(
            operation.definition, [*given, *further], {}, query, None, b'', None
        )
    except wsme_exc.InvalidInput as error:
        # WSME's own messages name its classes.
        name = error.fieldname
        kinds = {argument.name: argument.datatype for argument in operation.arguments}
        expected = types.expected(kinds.get(name))
        raise exception.Invalid(
            reason=f'Invalid {name}: expected {expected}, got {str(error.value)[:64]!r}.'
        ) from None
    except (TypeError, ValueError):  # raised for an object that is empty text, or no list
        raise exception.Invalid(reason=f'Invalid filters: expected {types.FILTERS}.') from None
    if operation.paged:
        found['page'] = {name: found.pop(name, None) for name in PAGE}
    if operation.filters:
        found['wanted'] = {name: found.pop(name, None) for name in operation.filters}
    return typing.cast('dict[str, typing.Any]', found)


def body() -> typing.Any:
    """The body of the request, which fits its schema.

    A method calls this after ``can``: the body of an unauthorized caller is not parsed.

    :raises cyborg_lite.exception.Invalid: when it does not fit.
    """
    if call().content_type not in ('', 'application/json'):
        raise exception.UnsupportedMediaType(given=call().content_type)
    value = types.parse(call().body)
    types.check(value, call().operation.body or {})
    return value


def _database_away(error: Exception) -> str | None:
    """The reason if a conductor timed out because the database is unavailable."""
    if not isinstance(error, messaging.MessagingTimeout):
        return None
    try:
        with call().database.reader() as session:
            session.execute(sa.select(1))
    except Exception as instead:
        return away(instead)
    return None


def _fault(error: Exception) -> webob.Response:
    """The error answer for an exception, in WSME's form."""
    if (reason := away(error)) is not None:
        status, text = 503, _database_away(error) or reason
        LOG.warning('Answered with 503: %r', error)
    elif isinstance(error, exception.CyborgError):
        status, text = error.code, error.message
    elif isinstance(error, wsme_exc.ClientSideError):
        status, text = error.code, error.faultstring
    else:
        status, text = 500, 'An unexpected error occurred.'
        LOG.error('Unexpected error', exc_info=error)
    if status == exception.StillChanging.code:
        return webob.Response(status=status, content_type=None)
    _log_refusal(status, text)
    side = 'Client' if status < 500 else 'Server'
    explanation = error.explanation if isinstance(error, exception.CyborgError) else None
    more = {'explanation': explanation} if explanation else {}
    return error_response(
        status, {'faultcode': side, 'faultstring': text, 'debuginfo': None} | more
    )


def _log_refusal(status: int, text: str) -> None:
    """Log each refused change and each 403; other refused reads are not logged."""
    method = call().method
    if status == 403 or (status < 500 and method != 'GET'):
        said = ascii(f'{method} {call().path}')[1:-1], status, ascii(text)[1:-1]
        LOG.info('%s is refused with %d: %s', *said)


class Controller:
    """A resource: the name of its collection in URLs, and its rows."""

    kind: type[model.Base]
    path: str
    #: the column by which one row is requested
    id = 'uuid'
    #: the name of the list in an answer; the path by default
    collection = ''
    #: the name of the resource in errors
    what: str

    def links(self, row: dict[str, typing.Any], root: str) -> list[dict[str, str]]:
        return [{'rel': 'self', 'href': f'{root}/v2/{self.path}/{row[self.id]}'}]

    def read(
        self, *conditions: typing.Any, page: query.Page | None = None
    ) -> list[dict[str, typing.Any]]:
        """The rows that meet all conditions, in the form of this request's microversion."""
        view = types.view(self.kind, call().version)
        with call().database.reader() as session:
            rows = query.read(
                session, self.kind, view.paths, *conditions, page=page, scope=self.scope()
            )
        return [self._show(view, row) for row in rows]

    def these(self, uuids: list[str]) -> list[dict[str, typing.Any]]:
        """These rows, which the caller may see, in the form of this request's microversion."""
        view = types.view(self.kind, call().version)
        with call().database.reader() as session:
            rows = query.read_these(session, self.kind, view.paths, uuids)
        return [self._show(view, row) for row in rows]

    def _show(
        self, view: types.View, row: collections.abc.Sequence[typing.Any]
    ) -> dict[str, typing.Any]:
        shown = view.show(row)
        shown['links'] = self.links(shown, call().root)
        return shown

    def scope(self) -> list[typing.Any]:
        """The conditions of the rows that the caller may see."""
        return []

    def fetch(self, id: str, by: str = '') -> dict[str, typing.Any]:
        """The row of this id, as it is shown."""
        by = by or self.id
        id = types.canonical(id) if by == 'uuid' else id
        view = types.view(self.kind, call().version)
        with call().database.reader() as session:
            row = query.read_one(session, self.kind, view.paths, id, *self.scope(), by=by)
        if row is None:
            raise exception.NotFound(what=self.what, id=id)
        return self._show(view, row)

    def list(self, *conditions: typing.Any, page: dict[str, typing.Any]) -> dict[str, typing.Any]:
        """A page of the rows that meet all conditions, with a link to the next page if there is
        one.

        The list is the first key: Tempest reads only that one.
        """
        wanted = _page(self.kind, **page)
        more = dataclasses.replace(wanted, limit=wanted.limit + 1)  # type: ignore[operator]
        rows = self.read(*conditions, page=more)
        shown = rows[: wanted.limit]
        name = self.collection or self.path
        answer: dict[str, typing.Any] = {name: shown}
        if len(rows) > len(shown) and shown:
            answer[f'{name}_links'] = [
                {'rel': 'next', 'href': following('marker', shown[-1]['uuid'])}
            ]
        return answer


def _page(
    kind: type[model.Base],
    limit: str | None = None,
    marker: str | None = None,
    sort_key: str | None = None,
    sort_dir: str | None = None,
) -> query.Page:
    number = size(limit)
    sortable = types.sort_keys(kind, call().version)
    if sort_key is not None and sort_key not in sortable:
        raise exception.Invalid(
            reason=f'Invalid sort_key {sort_key!r}: expected one of {", ".join(sortable)}.'
        )
    if sort_dir not in (None, 'asc', 'desc'):
        raise exception.Invalid(reason=f'Invalid sort_dir {sort_dir!r}: expected asc or desc.')
    return query.Page(
        limit=number,
        marker=None if marker is None else types.canonical(marker),
        sort_key=sort_key or 'id',
        sort_dir=sort_dir or 'asc',
    )


def size(limit: str | None) -> int:
    """How many rows a page may have, by the argument ``limit``."""
    most = call().conf.api.max_limit
    if limit is None:
        return most
    if not (limit.isascii() and limit.isdigit()):
        raise exception.Invalid(reason=f'Invalid limit {limit!r}: expected a number, 0 or more.')
    return min(int(limit[:9]), most)


def split_filters(
    filters: list[types.Filter] | None, fields: collections.abc.Container[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Split upstream's dotted filters into arguments of a page and filters by these fields.

    :raises cyborg_lite.exception.Invalid: when a field is neither.
    """
    page: dict[str, str] = {}
    rest_: dict[str, str] = {}
    for each in filters or ():
        if each is None or wtypes.Unset in (each.field, each.value):
            raise exception.Invalid(reason=f'Invalid filters: expected {types.FILTERS}.')
        if each.field in ('limit', 'marker', 'sort_key', 'sort_dir'):
            page[each.field] = each.value
        elif each.field in fields:
            rest_[each.field] = each.value
        else:
            raise exception.Invalid(reason=f'Cannot filter by {each.field!r}.')
    return page, rest_


def following(name: str, value: str) -> str:
    """The URL of the next page: this URL, with another value of one argument."""
    arguments = [(k, v) for k, v in call().query.items() if k != name]
    path = call().root + call().path
    return f'{path}?{urllib.parse.urlencode([*arguments, (name, value)])}'
