# SPDX-License-Identifier: Apache-2.0
"""The pipeline: the layers that a request passes, from the outermost to the innermost."""

from __future__ import annotations

import collections.abc
import http
import json
import threading
import typing

from oslo_config import cfg
from oslo_log import log
from oslo_middleware import catch_errors
from oslo_middleware import cors
from oslo_middleware import http_proxy_to_wsgi
from oslo_middleware import request_id
from oslo_policy import policy as oslo_policy
import pecan
import webob
import webob.exc
import webob.multidict

from cyborg_lite import context
from cyborg_lite import exception
from cyborg_lite import policy
from cyborg_lite import rpc
from cyborg_lite import shims
from cyborg_lite import unix
from cyborg_lite.api import health
from cyborg_lite.api import members
from cyborg_lite.api import openapi
from cyborg_lite.api import origin
from cyborg_lite.api import peers
from cyborg_lite.api import rest
from cyborg_lite.api import root
from cyborg_lite.api import types
from cyborg_lite.api import users
from cyborg_lite.api import version
from cyborg_lite.db import engine

LOG = log.getLogger(__name__)

Wsgi = collections.abc.Callable[..., typing.Any]

#: Discovery needs no token: a client uses it to find the identity service.
PUBLIC = ('', '/', '/v2', '/v2/', '/v2/openapi.json')

#: How the headers begin that oslo.context takes for the identity of a caller.
IDENTITY = ('HTTP_X_', 'HTTP_OPENSTACK_SYSTEM_SCOPE')

#: The identity of each caller without authentication: the administrator of one project.
ALONE = {
    'X-User-Id': 'admin',
    'X-Project-Id': '00000000000000000000000000000001',
    'X-Roles': 'admin,manager,member,reader',
}


def application(conf: cfg.ConfigOpts, database: engine.Database, bus: rpc.Peers) -> Wsgi:
    """The WSGI application of the API."""
    app: Wsgi = Front(conf, database, bus)
    local = Alone(app, peers.Peers(conf).headers)
    app = _by_door(local, _authenticated(app, conf))
    app = SizeLimit(app, conf.api.max_request_body_size)
    shared = cors.CORS(app, conf)
    # Without allowed origins the middleware still costs a request and a response object.
    app = shared if shared.allowed_origins else app
    app = _by_path(health.paths(conf, database, bus), app)
    guard = origin.Guard(conf)
    behind = http_proxy_to_wsgi.HTTPProxyToWSGI(_guarded(app, guard.check_forwarded), conf)
    app = behind if conf.oslo_middleware.enable_proxy_headers_parsing else app
    # The guard runs before headers replace the address of the client.
    app = _guarded(app, guard.check)
    app = with_errors_in_one_form(app)
    app = _without_caller(catch_errors.CatchErrors(app))
    return typing.cast('Wsgi', request_id.RequestId(app))


def _without_caller(app: Wsgi) -> Wsgi:
    """Forget the caller of the request that this thread answered before."""

    def forgetful(environ: dict[str, typing.Any], start_response: typing.Any) -> typing.Any:
        context.forget(environ.get(request_id.ENV_REQUEST_ID))
        return app(environ, start_response)

    return forgetful


def _by_door(local: Wsgi, other: Wsgi) -> Wsgi:
    """The first application for requests at the Unix socket of the API, otherwise the second."""

    def chosen(environ: dict[str, typing.Any], start_response: typing.Any) -> typing.Any:
        return (local if unix.PEER in environ else other)(environ, start_response)

    return chosen


def _authenticated(app: Wsgi, conf: cfg.ConfigOpts) -> Wsgi:
    """The application behind the layer that authenticates the caller over the network."""
    if conf.api.auth_strategy == 'keystone':
        from keystonemiddleware import auth_token

        checked = auth_token.AuthProtocol(app, {'oslo_config_config': conf})
        return _by_path(dict.fromkeys(PUBLIC, app), checked)
    if conf.api.auth_strategy == 'noauth':
        return Alone(app, lambda _: ALONE)
    checked = Alone(app, _basic(conf))
    return _by_path(dict.fromkeys(PUBLIC, app), checked)


def _basic(conf: cfg.ConfigOpts) -> collections.abc.Callable[[webob.Request], members.Headers]:
    """What names the callers of ``http_basic``: by default each is administrator of one project."""
    named = users.Users(conf.api.http_basic_auth_user_file)
    file = conf.api.http_basic_auth_project_file
    known = members.Members(file) if file else None

    def headers(request: webob.Request) -> members.Headers:
        user = named.name(request)
        found = known.headers(user) if known else ALONE
        if found is None:
            raise webob.exc.HTTPForbidden(f'User {user} has no project on this service.')
        return found | {'X-User-Id': user}

    return headers


def _guarded(app: Wsgi, check: collections.abc.Callable[[dict[str, typing.Any]], None]) -> Wsgi:
    def checked(environ: dict[str, typing.Any], start_response: typing.Any) -> typing.Any:
        try:
            check(environ)
        except exception.CyborgError as error:
            said = {'faultcode': 'Client', 'faultstring': error.message, 'debuginfo': None}
            return rest.error_response(error.code, said)(environ, start_response)
        return app(environ, start_response)

    return checked


def with_errors_in_one_form(app: Wsgi) -> Wsgi:
    """Give errors of our own resources the form of the API-SIG guideline."""

    def formed(environ: dict[str, typing.Any], start_response: typing.Any) -> typing.Any:
        if not openapi.is_ours(environ.get('PATH_INFO', '')):
            return app(environ, start_response)
        status, headers, body = webob.Request(environ).call_application(app)
        if int(status[:3]) < 400:
            start_response(status, headers)
            return body
        response = webob.Response(status=status, headerlist=headers, app_iter=body)
        detail, more = _said(response)
        error = {
            'status': response.status_int,
            'title': response.status.partition(' ')[2],
            'detail': detail,
            'request_id': environ.get(request_id.ENV_REQUEST_ID, ''),
        } | more
        response.content_type, response.charset = 'application/json', 'UTF-8'
        response.body = json.dumps({'errors': [error]}).encode()
        return response(environ, start_response)

    return formed


def _said(response: webob.Response) -> tuple[str, dict[str, typing.Any]]:
    """The text of an error in Cyborg's form or keystonemiddleware's, and its other fields."""
    try:
        said = response.json
        if 'error' in said:
            return str(said['error']['message']), {}
        inner = json.loads(said['error_message'])
        more = {name: inner[name] for name in ('explanation',) if name in inner}
        return str(inner.get('faultstring') or inner['description']), more
    except (ValueError, KeyError, TypeError):
        return f'{http.HTTPStatus(response.status_int).description}.', {}


def _by_path(apps: dict[str, Wsgi], other: Wsgi) -> Wsgi:
    def chosen(environ: dict[str, typing.Any], start_response: typing.Any) -> typing.Any:
        return apps.get(environ.get('PATH_INFO', ''), other)(environ, start_response)

    return chosen


class Alone:
    """Sets the identity of the caller, and ignores identity headers of the request."""

    def __init__(
        self, app: Wsgi, who: collections.abc.Callable[[webob.Request], members.Headers]
    ) -> None:
        """Wrap an application.

        :param who: returns the identity headers of the caller, or raises an HTTPException.
        """
        self._app = app
        self._who = who

    def __call__(self, environ: dict[str, typing.Any], start_response: typing.Any) -> typing.Any:
        try:
            identity = self._who(webob.Request(environ))
        except webob.exc.HTTPException as error:
            answer = rest.error_response(error.code, error.detail or str(error))
            if error.code == 401:
                answer.headers['WWW-Authenticate'] = 'Basic realm="cyborg_lite"'
            elif error.code == 503:
                answer.headers['Retry-After'] = '1'
            return answer(environ, start_response)
        for name in [name for name in environ if name.startswith(IDENTITY)]:
            del environ[name]
        for name, value in ({'X-Identity-Status': 'Confirmed'} | identity).items():
            environ[f'HTTP_{name.upper().replace("-", "_")}'] = value
        return self._app(environ, start_response)


class SizeLimit:
    """Refuses a body that is too large before anything reads it."""

    def __init__(self, app: Wsgi, most: int) -> None:
        self._app = app
        self._most = most

    def __call__(self, environ: dict[str, typing.Any], start_response: typing.Any) -> typing.Any:
        app = self._refusal(webob.Request(environ)) or self._app
        return app(environ, start_response)

    def _refusal(self, request: webob.Request) -> webob.Response | None:
        if request.content_length is None and request.is_body_readable:
            # Chunked: the length is unknown until the body is read.
            try:
                request.body = request.body_file.read(self._most + 1)
            except (OSError, ValueError):
                return rest.error_response(
                    400, 'The body is not chunked as it says, or ends too early.'
                )
        if (request.content_length or 0) > self._most:
            return rest.error_response(
                413, f'The body is too large: expected {self._most} bytes at most.'
            )
        return None


class Unread(pecan.Request):
    """The request that pecan sees.  The table of URLs alone reads path, arguments and body.

    Pecan would parse the body and the arguments before the caller is authorized.
    """

    path_info = '/'
    accept = json = None
    GET = params = webob.multidict.NoVars()


class Front:
    """The root of pecan: negotiates the microversion, sets the caller, and routes the request."""

    def __init__(self, conf: cfg.ConfigOpts, database: engine.Database, bus: rpc.Peers) -> None:
        shims.cache_signatures()
        self._pecan = pecan.core.ExplicitPecan(
            self, guess_content_type_from_ext=False, request_cls=Unread
        )
        self._conf = conf
        self._database = database
        self._bus = bus
        self._enforcer = policy.enforcer(conf)
        self._waiting = threading.Semaphore(conf.api.max_waiting)

    def __call__(self, environ: dict[str, typing.Any], start_response: typing.Any) -> typing.Any:
        if environ['REQUEST_METHOD'] == 'OPTIONS':
            answer = webob.Response(status=200, content_type='application/json')
            return answer(environ, start_response)
        return self._pecan(environ, start_response)

    @pecan.expose()
    def _route(self, path: list[str], request: Unread) -> typing.Any:
        return self.answer, []

    @pecan.expose(content_type=None)
    def answer(self, unread: Unread, _: pecan.Response) -> webob.Response:
        request = webob.Request(unread.environ)
        try:
            _refuse_unreadable(request)
            agreed = version.negotiate(request.headers.get(version.HEADER))
        except exception.Invalid as error:
            return rest.error_response(error.code, error.message)
        except exception.NotAcceptable as error:
            known = {} if isinstance(error, version.Unparsable) else version.headers(None)
            return rest.error_response(error.code, error.message, known)
        response = self._answer(request, agreed)
        if request.path_info not in ('', '/'):
            response.headers.update(version.headers(agreed))
        return response

    def _answer(self, request: webob.Request, agreed: tuple[int, int]) -> webob.Response:
        served = root.served(request.path_info)
        # Frameworks take an argument of this name for the method.
        if request.method not in served or '_method' in request.GET:
            allow = {'Allow': ', '.join(sorted(served))} if served else {}
            return rest.plain_error(405 if served else 404, allow)
        try:
            body = request.body
        except OSError:
            return rest.error_response(400, 'The body ends before its Content-Length.')
        call = rest.Call(
            context=_context(request, self._enforcer, self._conf),
            version=agreed,
            method='GET' if request.method == 'HEAD' else request.method,
            path=root.plain(request.path_info),
            query=request.GET,
            headers=request.headers,
            body=body,
            content_type=request.content_type,
            conf=self._conf,
            database=self._database,
            bus=self._bus,
            root=(self._conf.api.public_endpoint or request.application_url).rstrip('/'),
            waiting=self._waiting,
            # Our own web server signals its stop; other servers wait for their requests.
            stopping=request.environ.get('cyborg_lite.stopping', lambda: False),
            token=request.environ.get('keystone.token_auth'),
        )
        return rest.answer(call, *served[request.method])


def _context(
    request: webob.Request, enforcer: oslo_policy.Enforcer, conf: cfg.ConfigOpts
) -> context.RequestContext:
    made = context.RequestContext.from_environ(request.environ, enforcer=enforcer)
    made.is_admin = 'admin' in made.roles
    if conf.api.auth_strategy == 'keystone':
        vouching = conf.keystone_authtoken.service_token_roles
        made.vouched = not set(vouching).isdisjoint(made.service_roles)
    return made


def _refuse_unreadable(request: webob.Request) -> None:
    try:
        types.refuse_unstorable([request.path_info, *(t for kv in request.GET.items() for t in kv)])
    except ValueError:
        raise exception.Invalid(reason='Invalid URL: expected UTF-8 without NUL.') from None
