# SPDX-License-Identifier: Apache-2.0
"""Which requests are served where no token is asked for.

A token is in a header that nobody else can set. Without one, two others can make a request that
looks like the user's: a proxy that says whose request it forwards, and a web page of a stranger,
open in the user's browser. The browser reaches loopback addresses and knows the user's password.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
import sys
import typing
from urllib import parse

from oslo_config import cfg

from cyborg_lite import exception

Environ = dict[str, typing.Any]

_HOST = re.compile(r'(\[[0-9a-f:.]+\]|[0-9a-z._-]+)(:[0-9]+)?', re.IGNORECASE)

#: What proxies say of whom they speak for, or that they speak for another: RFC 7230, 7239, 8586,
#: and the headers of nginx, Envoy, Cloudflare, Akamai, Fastly and others.
_FORWARDING = re.compile(
    r'HTTP_(VIA|CDN_LOOP|(.*_)?FORWARDED(_.*)?'
    r'|(.*_)?(CLIENT|CONNECTING|REAL|PROXYUSER|REMOTE|USER)_?(IP|IPV6|ADDR)'
    r'|X_ENVOY_EXTERNAL_ADDRESS|X_ORIGINAL_(HOST|URL|PROTO))'
)

#: A page of another site can set neither of them, unless the CORS options let it.
_PROOFS = ('HTTP_OPENSTACK_API_VERSION', 'HTTP_X_REQUESTED_WITH')


@functools.lru_cache(1024)
def is_loopback(address: str) -> bool:
    """Whether this is an IP address that only this machine reaches."""
    found = _ip(address)
    # A socket for IPv6 shows IPv4 in this form.
    mapped = getattr(found, 'ipv4_mapped', None)
    return bool(found and (mapped or found).is_loopback)


class Guard:
    """Checks requests for an API that has noauth or http_basic."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        """:param conf: the options of CORS are known to it already."""
        self._noauth = conf.api.auth_strategy == 'noauth'
        public = parse.urlsplit(conf.api.public_endpoint or '').netloc
        names = ['localhost', public, *conf.api.allowed_hosts]
        if not self._noauth:
            names.append(socket.gethostname())
        self._names = {_name(each) for each in names}
        self._pages = set(conf.cors.allowed_origin or ())

    def check(self, environ: Environ) -> None:
        """Raise what a request is to be answered with, if it is not to be served."""
        if self._noauth:
            _check_peer(environ)
        self._check_host(environ.get('HTTP_HOST'))
        allowed = bool(self._pages & {'*', environ.get('HTTP_ORIGIN')})
        if not allowed:
            _check_page(environ)
        _check_type(environ, allowed)

    def _check_host(self, host: str | None) -> None:
        """Refuse names of others, which their owner can resolve to our address.

        A page from there would be of the same origin as the API. An address cannot be resolved to
        another one, and a browser always sends the header.
        """
        if host is None:
            return
        name = _name(host)
        address = is_loopback(name) if self._noauth else _ip(name)
        if not name or not (address or name in self._names):
            raise exception.Forbidden(
                reason=f'The host {host[:255]!r} is not known: expected localhost, an address '
                'that is listened on, or one of [api] allowed_hosts.'
            )


def _check_peer(environ: Environ) -> None:
    """Refuse other machines, and whoever speaks for them."""
    for name in environ:
        if _FORWARDING.fullmatch(name):
            header = name.removeprefix('HTTP_').replace('_', '-').title()
            raise exception.Forbidden(
                reason=f'Without authentication no forwarded request is served: {header} is set.'
            )
    address = environ.get('REMOTE_ADDR')
    if not (is_loopback(address) if address else _is_unix_socket(environ)):
        raise exception.Forbidden(reason='Without authentication only loopback is served.')


def _is_unix_socket(environ: Environ) -> bool:
    """Whether the web server says that the request came by a Unix socket."""
    gunicorn = environ.get('gunicorn.socket')
    if gunicorn is not None:
        return bool(gunicorn.family == socket.AF_UNIX)
    # uWSGI gives the module to those that it runs.
    uwsgi = sys.modules.get('uwsgi')
    if uwsgi is None:
        return False
    with socket.fromfd(uwsgi.connection_fd(), socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        return peer.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == int(socket.AF_UNIX)


def _check_page(environ: Environ) -> None:
    """Refuse what a page of another site makes a browser send."""
    origin = environ.get('HTTP_ORIGIN')
    host = environ.get('HTTP_HOST', '').lower()
    own = origin is None or origin.lower() in (f'http://{host}', f'https://{host}')
    if not own or environ.get('HTTP_SEC_FETCH_SITE') in ('cross-site', 'same-site'):
        raise exception.Forbidden(
            reason='A page of another site is not served: add its origin to [cors] '
            'allowed_origin if it should be.'
        )


def _check_type(environ: Environ, allowed: bool) -> None:
    """Refuse what a form can send: a browser lets every site send forms to every other."""
    given = environ.get('CONTENT_TYPE') or ''
    json = given.partition(';')[0].strip().lower() == 'application/json'
    body = environ.get('CONTENT_LENGTH') or '0'
    if (body != '0' or 'HTTP_TRANSFER_ENCODING' in environ) and not json:
        raise exception.UnsupportedMediaType(given=given[:255] or 'none')
    if environ['REQUEST_METHOD'] != 'POST' or json or allowed:
        return
    if given:
        raise exception.UnsupportedMediaType(given=given[:255])
    # Without a body clients send no type. Each browser calls itself Mozilla, and no page can
    # change that.
    browser = environ.get('HTTP_USER_AGENT', '').startswith('Mozilla/')
    if browser and not any(name in environ for name in _PROOFS):
        raise exception.Forbidden(
            reason='A form of a browser is not served: expected the header OpenStack-API-Version, '
            'X-Requested-With, or Content-Type: application/json.'
        )


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _name(host: str) -> str:
    """The name or address in a Host header, without the port; nothing if it is not valid."""
    found = _HOST.fullmatch(host)
    return found[1].strip('[]').lower().removesuffix('.') if found else ''
