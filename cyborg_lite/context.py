# SPDX-License-Identifier: Apache-2.0
"""Who asks, and what they may do."""

from __future__ import annotations

import typing

from oslo_context import context
from oslo_policy import policy

from cyborg_lite import exception


class RequestContext(context.RequestContext):
    """The caller of one request, as the API's authentication found it."""

    # What crosses the bus beside what oslo.context knows.
    FROM_DICT_EXTRA_KEYS = ['vouched', 'call']  # noqa: RUF012

    def __init__(
        self,
        enforcer: policy.Enforcer | None = None,
        vouched: bool | None = None,
        call: str | None = None,
        **kwargs: typing.Any,
    ) -> None:
        """A context.

        :param vouched: whether a valid service token came with the request, so that a service,
            Nova, vouches for it.
        :param call: the uuid of the call over the bus that is answered; None if there is none.
        """
        super().__init__(**kwargs)
        self._enforcer = enforcer
        self.vouched = bool(vouched)
        self.call = call

    def to_dict(self) -> dict[str, typing.Any]:
        return super().to_dict() | {'vouched': self.vouched, 'call': self.call}

    def can(self, rule: str, target: dict[str, typing.Any] | None = None) -> None:
        """Return if the caller may do what the rule guards.

        :param target: what it is done to; the caller's own project by default.
        :raises cyborg_lite.exception.NotAuthorized: otherwise.
        """
        if not self.allows(rule, target):
            raise exception.NotAuthorized(resource=rule)

    def allows(self, rule: str, target: dict[str, typing.Any] | None = None) -> bool:
        if self._enforcer is None:
            raise RuntimeError('a context without an enforcer cannot authorize')
        # Every rule is of projects, so that a token of the system or of a domain is nobody's, even
        # an administrator's. oslo.policy would tell by the scope, but of that keystonemiddleware
        # keeps only the service token's where one comes along.
        if not self.project_id:
            return False
        target = {'project_id': self.project_id} if target is None else target
        return bool(self._enforcer.authorize(rule, target, self))

    @property
    def scope(self) -> str | None:
        """The project whose objects the caller sees; None for an administrator, who sees all."""
        return None if self.is_admin else self.project_id or ''


def service() -> RequestContext:
    """The context of what the service does of itself."""
    return RequestContext(is_admin=True, overwrite=False)
