# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, each kind once, with the HTTP status that tells a client of it.

An error is raised where it is found.  Over RPC oslo.messaging rebuilds it from its
keyword arguments; the API answers with its ``code`` and ``message``.
"""

import typing


def line(error: BaseException) -> str:
    """The text of an error in one line, without the hints that SQLAlchemy adds."""
    return ' '.join(str(error).partition('\n[SQL:')[0].partition('(Background on')[0].split())


class Refused(Exception):
    """A command cannot do what it is asked to, as things are: the text says what to do."""


class CyborgError(Exception):
    """The base of all errors of ours: a message with blanks, and what fills them."""

    code = 500
    template = 'An unknown error occurred.'

    def __init__(self, **kwargs: typing.Any) -> None:
        self.kwargs = kwargs
        self.message = self.template.format(**kwargs)
        # No positional arguments: oslo.messaging would pass them on beside the keywords.
        super().__init__()

    def __str__(self) -> str:
        return self.message


class Invalid(CyborgError):
    """The request cannot be understood: says which field, and what was expected."""

    code = 400
    template = '{reason}'


class NotAuthorized(CyborgError):
    code = 403
    template = 'Access was denied to the following resource: {resource}'


class Forbidden(CyborgError):
    """The request is refused by where it comes from, whoever sends it."""

    code = 403
    template = '{reason}'


class ServiceTokenRequired(CyborgError):
    code = 403
    # Tempest looks for "requires a service token".
    template = (
        'This operation requires a service token. '
        'Use the Compute API to manage instance accelerators.'
    )


class ARQHeldByInstance(CyborgError):
    code = 403
    template = (
        'ARQ {uuid} is bound to instance {instance}. '
        'Use the Compute API to manage instance accelerators.'
    )


class OverQuota(CyborgError):
    """The project may not have so many."""

    code = 403
    template = (
        'Quota exceeded for {resource}: the limit is {limit}, {used} used, and {asked} asked for.'
    )


class NotFound(CyborgError):
    code = 404
    template = '{what} {id} not found.'


class CannotBind(CyborgError):
    """The requests were sound, and cannot be bound as they ask: they end as BindFailed."""


class ProviderNotFound(CannotBind):
    code = 404
    template = (
        'Resource provider {provider} not found. "openstack accelerator list --long" shows those '
        'that exist as rp_uuid.'
    )


class NoFreeHandle(CannotBind):
    """The provider has not as many free accelerators as the requests want."""

    code = 404
    template = (
        'Resource provider {provider} has {free} free attach handle(s), and {wanted} were asked '
        'for.{holders}'
    )

    def __init__(self, holders: str = '', **kwargs: typing.Any) -> None:
        """:param holders: who holds the others; a conductor of the release before does not say."""
        super().__init__(holders=holders, **kwargs)


class ProviderUnfit(CannotBind):
    """The provider is not to be given out now, or is not what was asked for."""

    code = 409
    template = 'Resource provider {provider} cannot be used: {reason}.'


class TraitsMissing(ProviderUnfit):
    """The provider has not all traits that the request requires, as far as we know."""

    template = (
        'Resource provider {provider} cannot be used: it lacks the trait {traits}, which ARQ {arq} '
        'requires.'
    )


class NotAcceptable(CyborgError):
    code = 406
    template = '{reason}'


class Conflict(CyborgError):
    """The request is sound, and the state of things forbids it."""

    code = 409
    template = '{reason}'


class Duplicate(CyborgError):
    code = 409
    # OpenStackClient's users look for "already exists".
    template = '{what} with {field} {value} already exists.'


class CannotAllocate(CyborgError):
    """What is free does not do: the explanation counts what each filter takes away."""

    code = 409
    template = 'Cannot allocate: {reason}.'

    @property
    def explanation(self) -> dict[str, typing.Any]:
        return typing.cast('dict[str, typing.Any]', self.kwargs['explanation'])


class KeyReused(CyborgError):
    """The idempotency key came before, with another request."""

    # Source: draft-ietf-httpapi-idempotency-key-header, "Error Scenarios".
    code = 422
    template = 'Idempotency key {key} was used before, with another request.'


class HeldByAllocation(CyborgError):
    code = 409
    template = 'ARQ {uuid} is a part of allocation {allocation}: release the allocation.'


class UnsupportedMediaType(CyborgError):
    code = 415
    template = 'Unknown Content-Type {given}: expected application/json.'


class StillChanging(CyborgError):
    """Some accelerator requests of the instance are not resolved yet."""

    code = 423
    template = 'Accelerator requests of instance {instance} are not all resolved.'


class DatabaseAway(CyborgError):
    """The database cannot be reached, or cannot be written."""

    code = 503
    template = 'The database cannot be used: {reason}. Try again.'


class AnswerUnknown(CyborgError):
    """A call was carried out before, by a release whose answers have another form."""

    code = 503
    template = (
        'This request has been carried out already, before an upgrade: look at what is there '
        'before you ask again.'
    )


class ComputeAway(CyborgError):
    """Nova cannot be asked."""

    code = 503
    template = 'Nova cannot be used: {reason}. Try again.'
