# SPDX-License-Identifier: Apache-2.0
"""Accelerators for a program in Python::

    import cyborg_lite

    with cyborg_lite.allocate('npu', 2) as devices:
        print(devices.addresses, devices.env)

It uses only the standard library, so that any program can import it.
"""

from __future__ import annotations

import collections.abc
import json
import os
import platform
import time

from cyborg_lite import client


def allocate(
    resource_class: str | None = None,
    count: int = 1,
    *,
    profile: str | None = None,
    traits: collections.abc.Iterable[str] = (),
    same_numa: bool = False,
    linked: bool = False,
    name: str | None = None,
    claimed_name: str | None = None,
    note: str | None = None,
    wait: float | None = None,
    host: str | None = None,
    socket: str | None = None,
    url: str | None = None,
    user: str | None = None,
    cacert: str | None = None,
) -> client.Lease:
    """Lease accelerators for this process; a ``with`` block releases them at its end.

    With a URL a service is asked over HTTP: the lease is one for a time, which a thread of this
    process renews.

    :param resource_class: such as ``npu``, ``gpu`` or ``CUSTOM_NPU``; by default the only one of
        this machine, which only an agent knows.
    :param profile: a device profile, in place of a class, a count and traits.
    :param traits: the traits that each accelerator must have.
    :param same_numa: whether all must be on one NUMA node.
    :param linked: whether their cards must form a ring of direct links, such as HCCS or NVLink.
    :param claimed_name: who you are, where people share a login; CYBORG_LITE_AS by default. It
        proves nothing, and gives no rights.
    :param note: what it is for; others see it.
    :param wait: the timeout of the wait in the queue, in seconds; 0 to fail at once if too few are
        free, None to wait without a limit.
    :param host: the host whose accelerators are leased: one of the agent, by default the first;
        with a URL any of the service, by default the name of this machine.
    :param socket: the socket of the agent; by default the usual places are searched.
    :param url: where a service answers: http://, https:// or unix:// and the path of its socket.
    :param user: the user of the service, with http_basic: CYBORG_LITE_PASSWORD has the password.
        With keystone OS_TOKEN has a token.
    :param cacert: the file of the authority to trust, with https.
    :raises cyborg_lite.client.Error: when the request is refused.
    :raises cyborg_lite.client.TimedOut: when too few were free until the timeout.
    """
    words: client.Words = {'count': count} if profile is None else {'profile': profile}
    words |= {'resource_class': resource_class} if resource_class else {}
    words |= {'traits': dict.fromkeys(traits, 'required')} if traits else {}
    words |= {'same_numa': 'require'} if same_numa else {}
    words |= {'link': 'require'} if linked else {}
    words |= {'name': name} if name else {}
    words |= client.labels(claimed_name, note)
    words['queue'] = wait is None or wait > 0
    end = None if wait is None else time.monotonic() + wait
    if url is None:
        last: client.Words = {}
        try:
            return client.lease(client.find(socket), words, host=host, end=end, told=last.update)
        except client.TimedOut:
            raise client.late(last.get('reason')) from None
    # Imported here: HTTP and TLS take long to load.
    from cyborg_lite import remote
    from cyborg_lite import renewing

    service = remote.Service(url, user, cacert)
    return renewing.lease(service, words, host or platform.node(), end)


def allocation() -> client.Lease | None:
    """The lease that ``cyborg-lite run`` gave to this process or to an ancestor of it.

    :raises cyborg_lite.client.Error: when a variable was changed so that it cannot be read.
    """
    uuid, text = os.environ.get(client.ALLOCATION), os.environ.get(client.DEVICES)
    if not uuid or not text:
        return None
    try:
        devices = [dict(each) for each in json.loads(text)]
    except (ValueError, TypeError, RecursionError):
        raise client.Error(f'{client.DEVICES} is no list of objects', 400) from None
    known = _known(uuid)
    named = client.ALLOCATION, client.DEVICES, *known.get('variables', ())
    variables = {each: os.environ[each] for each in named if each in os.environ}
    names = [each.get('name') or each.get('id') for each in devices]
    views = {
        'process': {'env': variables},
        'spark': {'resources': [{'name': None, 'addresses': names}]},
    }
    path = os.environ.get(client.VARIABLE, '')
    host = known.get('host') or platform.node()
    return client.Lease(uuid, known.get('name'), host, devices, views, path)


def _known(uuid: str) -> client.Words:
    """What the environment says of this lease; nothing if only its devices were handed on."""
    try:
        known: client.Words = {**json.loads(os.environ.get(client.LEASE) or '{}')}
        known['variables'] = [str(each) for each in known.get('variables', ())]
        texts = [*known['variables'], known.get('host') or '', known.get('name') or '']
        # As the names of variables they are encoded.
        os.fsencode(''.join(texts))
    except (ValueError, TypeError, RecursionError):
        expected = 'an object of texts, whose variables are a list'
        raise client.Error(f'Invalid {client.LEASE}: expected {expected}', 400) from None
    return known if known.get('uuid') == uuid else {}
