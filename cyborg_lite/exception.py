# SPDX-License-Identifier: Apache-2.0
"""All errors, each with its HTTP status.

An error is raised where it is found.  Over RPC oslo.messaging rebuilds it from its
keyword arguments; the API answers with its ``code`` and ``message``.
"""

import typing


def line(error: BaseException) -> str:
    """The text of an error in one line, without SQLAlchemy's hints."""
    return ' '.join(str(error).partition('\n[SQL:')[0].partition('(Background on')[0].split())


class Refused(Exception):
    """A command is refused in the present state: the text says what to do."""


class CyborgError(Exception):
    """The base class of our errors: a message template and its arguments."""

    code = 500
    template = 'An unknown error occurred.'

    def __init__(self, **kwargs: typing.Any) -> None:
        self.kwargs = kwargs
        self.message = self.template.format(**kwargs)
        # No positional arguments: oslo.messaging would pass them beside the keywords.
        super().__init__()

    @property
    def explanation(self) -> dict[str, typing.Any] | None:
        """What the filters drop, of an allocation that is refused: see conductor.reasons."""
        return self.kwargs.get('explanation')

    def __str__(self) -> str:
        return self.message


class Invalid(CyborgError):
    """The request is invalid: the message names the field and the expectation."""

    code = 400
    template = '{reason}'


class NotAuthorized(CyborgError):
    """No role of the caller allows the request."""

    code = 403
    template = 'Access was denied to the following resource: {resource}. It needs {needed}.'


class Forbidden(CyborgError):
    """The request is refused because of its origin, for every caller."""

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
    """The request would exceed a quota."""

    code = 403
    template = (
        'Quota exceeded for {resource}: the limit is {limit}, {used} used, and {asked} asked for'
        '{whose}.'
    )

    def __init__(self, whose: str = '', **kwargs: typing.Any) -> None:
        """:param whose: the project; the previous release omits it."""
        super().__init__(whose=whose, **kwargs)

    @property
    def is_lasting(self) -> bool:
        """Whether more is asked for than the limit itself, so that it helps nothing to wait."""
        return bool(self.kwargs['asked'] > self.kwargs['limit'])


class NotFound(CyborgError):
    code = 404
    template = '{what} {id} not found.'


class CannotBind(CyborgError):
    """The requests are valid but cannot be bound: they become BindFailed."""


class ProviderNotFound(CannotBind):
    code = 404
    template = (
        'Resource provider {provider} not found. "openstack accelerator list --long" shows those '
        'that exist as rp_uuid.'
    )


class NoFreeHandle(CannotBind):
    """The provider has fewer free accelerators than the requests need."""

    code = 404
    template = (
        'Resource provider {provider} has {free} free attach handle(s), and {wanted} were asked '
        'for.{holders}'
    )

    def __init__(self, holders: str = '', **kwargs: typing.Any) -> None:
        """:param holders: the holders of the others; the previous release omits them."""
        super().__init__(holders=holders, **kwargs)


class ProviderUnfit(CannotBind):
    """The provider cannot be allocated now, or does not match the request."""

    code = 409
    template = 'Resource provider {provider} cannot be used: {reason}.'


class TraitsMissing(ProviderUnfit):
    """The provider lacks traits that the request requires."""

    template = (
        'Resource provider {provider} cannot be used: it lacks the trait {traits}, which ARQ {arq} '
        'requires.'
    )


class NotAcceptable(CyborgError):
    code = 406
    template = '{reason}'


class Conflict(CyborgError):
    """The request is valid but conflicts with the present state."""

    code = 409
    template = '{reason}'


class Duplicate(CyborgError):
    code = 409
    # OpenStackClient's users look for "already exists".
    template = '{what} with {field} {value} already exists.'


class LimitsElsewhere(CyborgError):
    """Limits are not kept here."""

    code = 409
    template = (
        'Keystone keeps the limits ([quota] driver is keystone): use "openstack registered limit" '
        'and "openstack limit" to list and to set them.'
    )


class CannotAllocate(CyborgError):
    """Too few accelerators fit and are free: the explanation counts what each filter drops."""

    code = 409
    template = 'Cannot allocate: {reason}.'


class KeyReused(CyborgError):
    """The idempotency key was used before, with another request."""

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


class CreatedUnread(CyborgError):
    """What was created cannot be shown now."""

    code = 503
    template = (
        '{what} {uuid} is created, but the database cannot be read now: ask for it by its uuid, '
        'and do not create another one.'
    )


class AnswerUnknown(CyborgError):
    """A call was completed before, by a release with another form of answers."""

    code = 503
    template = (
        'This request has been carried out already, before an upgrade: look at what is there '
        'before you ask again.'
    )


class LimitsAway(CyborgError):
    """The limits of a project are not known, and Keystone does not say them."""

    code = 503
    template = 'The limits of the project cannot be read from Keystone: {reason}. Try again.'


class ComputeAway(CyborgError):
    """Nova cannot be asked."""

    code = 503
    template = 'Nova cannot be used: {reason}. Try again.'
