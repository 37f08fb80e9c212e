# SPDX-License-Identifier: Apache-2.0
"""The log of what callers order: each order, and whether it was carried out or why it was refused.

The prefix of a line, which oslo.log makes of the caller's context, says who asked.
"""

from __future__ import annotations

import collections.abc
import functools
import typing

from oslo_log import log
import oslo_messaging as messaging

LOG = log.getLogger(__name__)

#: How many of a list are named.
NAMED = 8
#: How long what an order or a refusal says may be, in characters: arguments are not checked yet.
LONGEST = 4096

Method = collections.abc.Callable[..., typing.Any]
#: What an order is in words, of its arguments: a template, or a function.
Order = str | collections.abc.Callable[..., str]


def logged(order: Order) -> collections.abc.Callable[..., Method]:
    """Log each call of a method of a manager.

    :param order: what the method does.
    """

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def call(manager: typing.Any, ctxt: typing.Any, **kwargs: typing.Any) -> typing.Any:
            text = _words(order, kwargs) or f'{method.__name__}, whose arguments cannot be read'
            try:
                answer = method(manager, ctxt, **kwargs)
            except messaging.ExpectedException as expected:
                LOG.info('%s: refused: %s', text, _line(str(expected.exc_info[1])))
                raise
            LOG.info('%s: done', text)
            return answer

        return call

    return decorate


def _words(order: Order, arguments: dict[str, typing.Any]) -> str:
    """What an order says; nothing if its arguments are not what they should be."""
    try:
        return _line(order.format(**arguments) if isinstance(order, str) else order(**arguments))
    except Exception:  # the bus may deliver any arguments
        return ''


def _line(text: str) -> str:
    return plain(text[:LONGEST])


def bind(wishes: list[typing.Any], **_: typing.Any) -> str:
    """Name what is bound, and where."""
    places: dict[tuple[str, ...], list[str]] = {}
    for wish in wishes:
        place = wish['instance_uuid'], wish['hostname'], wish['device_rp_uuid']
        places.setdefault(place, []).append(wish['uuid'])
    return '; '.join(
        f'Bind ARQ {names(uuids)} to instance {instance} on host {host} (provider {provider})'
        for (instance, host, provider), uuids in list(places.items())[:NAMED]
    )


def unbind(uuids: list[str], **_: typing.Any) -> str:
    return f'Unbind ARQ {names(uuids)}'


def delete(uuids: list[str], **_: typing.Any) -> str:
    return f'Delete ARQ {names(uuids)}'


def allocate(request: typing.Any, **_: typing.Any) -> str:
    wanted = [f'device profile {request["profile"]}'] if request['profile'] is not None else []
    wanted += [str(groups) for groups in request['alternatives']]
    named = f' as {request["name"]}' if request.get('name') else ''
    return f'Allocate {" or ".join(wanted)[:500]}{named}'


def reserve(request: typing.Any, **_: typing.Any) -> str:
    return f'{allocate(request)} from {request["starts_at"]} for {request["lease"]} seconds'


def lease(host: str, process: typing.Any, request: typing.Any, **_: typing.Any) -> str:
    who = ' '.join(str(process.get(name))[:64] for name in ('pid', 'user'))
    return f'Lease for process {who} on host {host[:255]}: {str(request)[:500]}'


def set_status(uuid: str, status: str, **_: typing.Any) -> str:
    return f'{"Enable" if status == "enabled" else "Disable"} device {uuid}'


def names(uuids: list[str]) -> str:
    """A list in words, however long it is."""
    more = f' and {len(uuids) - NAMED} more' if len(uuids) > NAMED else ''
    return ', '.join(uuids[:NAMED]) + more


def plain(text: str) -> str:
    """A text on one line: names come from callers."""
    return ''.join(each if each.isprintable() else '?' for each in text)
