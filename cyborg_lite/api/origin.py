# SPDX-License-Identifier: Apache-2.0
"""Which requests are served where no token is required.

Only the user can send the token.  Without a token, a request may also come from a proxy that
forwards it for another client, or from a web page of another site in the user's browser.  The
browser reaches loopback addresses and knows the user's password.
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
from cyborg_lite import unix

Environ = dict[str, typing.Any]

_HOST = re.compile(r'(\[[0-9a-f:.]+\]|[0-9a-z._-]+)(:[0-9]+)?', re.IGNORECASE)

#: The headers by which proxies name the client or themselves: RFC 7230, 7239, 8586, and those of
#: nginx, Envoy, Cloudflare, Akamai, Fastly and others.
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
    # An IPv6 socket shows IPv4 addresses in this form.
    mapped = getattr(found, 'ipv4_mapped', None)
    return bool(found and (mapped or found).is_loopback)


class Guard:
    """Checks requests that need no token: with noauth or http_basic, or at the Unix socket."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        """:param conf: the options of CORS are registered already."""
        self._noauth = conf.api.auth_strategy == 'noauth'
        self._tokens = conf.api.auth_strategy == 'keystone'
        public = parse.urlsplit(conf.api.public_endpoint or '').netloc
        names = ['localhost', public, *conf.api.allowed_hosts]
        if not self._noauth:
            names.append(socket.gethostname())
        self._names = {_name(each) for each in names}
        self._pages = set(conf.cors.allowed_origin or ())

    def check(self, environ: Environ) -> None:
        """Raise an error if the request must not be served."""
        local = unix.PEER in environ
        if self._tokens and not local:
            return
        if self._noauth or local:
            _check_peer(environ)
        self._check_host(environ.get('HTTP_HOST'))
        allowed = bool(self._pages & {'*', environ.get('HTTP_ORIGIN')})
        if not allowed:
            _check_page(environ)
        _check_type(environ, allowed)

    def check_forwarded(self, environ: Environ) -> None:
        """Check what the headers of a proxy have replaced: the links in answers are made of it.

        A client can write these headers, too, where the proxy does not remove them.
        """
        if self._tokens:
            return
        self._check_host(environ.get('HTTP_HOST'))
        scheme = environ['wsgi.url_scheme']
        if scheme not in ('http', 'https'):
            raise exception.Forbidden(
                reason=f'The scheme {scheme[:255]!r} is not known: expected http or https.'
            )

    def _check_host(self, host: str | None) -> None:
        """Refuse unknown host names: their owner can resolve them to our address.

        A page from such a host would have the same origin as the API. An address cannot be
        resolved to another one, and a browser always sends the header.
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
    """Refuse other machines, and proxies."""
    for name in environ:
        if _FORWARDING.fullmatch(name):
            header = name.removeprefix('HTTP_').replace('_', '-').title()
            raise exception.Forbidden(
                reason=f'No forwarded request is served here: {header} is set.'
            )
    address = environ.get('REMOTE_ADDR')
    if not (is_loopback(address) if address else _is_unix_socket(environ)):
        raise exception.Forbidden(reason='Without authentication only loopback is served.')


def _is_unix_socket(environ: Environ) -> bool:
    """Whether the web server reports that the request came over a Unix socket."""
    if unix.PEER in environ:
        return True
    gunicorn = environ.get('gunicorn.socket')
    if gunicorn is not None:
        return bool(gunicorn.family == socket.AF_UNIX)
    # Only applications that uWSGI runs have this module.
    uwsgi = sys.modules.get('uwsgi')
    if uwsgi is None:
        return False
    with socket.fromfd(uwsgi.connection_fd(), socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        return peer.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == int(socket.AF_UNIX)


def _check_page(environ: Environ) -> None:
    """Refuse a request that a page of another site made a browser send."""
    origin = environ.get('HTTP_ORIGIN')
    host = environ.get('HTTP_HOST', '').lower()
    own = origin is None or origin.lower() in (f'http://{host}', f'https://{host}')
    if not own or environ.get('HTTP_SEC_FETCH_SITE') in ('cross-site', 'same-site'):
        raise exception.Forbidden(
            reason='A page of another site is not served: add its origin to [cors] '
            'allowed_origin if it should be.'
        )


def _check_type(environ: Environ, allowed: bool) -> None:
    """Refuse form content types: a browser lets every site send forms to every other."""
    given = environ.get('CONTENT_TYPE') or ''
    json = given.partition(';')[0].strip().lower() == 'application/json'
    body = environ.get('CONTENT_LENGTH') or '0'
    if (body != '0' or 'HTTP_TRANSFER_ENCODING' in environ) and not json:
        raise exception.UnsupportedMediaType(given=given[:255] or 'none')
    if environ['REQUEST_METHOD'] != 'POST' or json or allowed:
        return
    if given:
        raise exception.UnsupportedMediaType(given=given[:255])
    # Clients send no type without a body. Each browser calls itself Mozilla, and no page can
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
    """The name or address in a Host header, without the port; empty if it is invalid."""
    found = _HOST.fullmatch(host)
    return found[1].strip('[]').lower().removesuffix('.') if found else ''
