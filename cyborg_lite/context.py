# SPDX-License-Identifier: Apache-2.0
"""The caller of a request, and authorization."""

from __future__ import annotations

import collections.abc
import contextlib
import typing

from oslo_context import context

from cyborg_lite import exception


class Enforcer(typing.Protocol):
    """Decides which caller may do what: see cyborg_lite.policy."""

    def authorize(
        self, rule: str, target: dict[str, typing.Any], creds: typing.Any
    ) -> typing.Any: ...

    def roles(self, rule: str) -> list[str]: ...


class RequestContext(context.RequestContext):
    """The caller of one request, from the API's authentication."""

    # Fields that are sent over the bus beside those of oslo.context.
    FROM_DICT_EXTRA_KEYS = ['vouched', 'call']  # noqa: RUF012

    def __init__(
        self,
        enforcer: Enforcer | None = None,
        vouched: bool | None = None,
        call: str | None = None,
        **kwargs: typing.Any,
    ) -> None:
        """A context.

        :param vouched: whether a valid service token, such as Nova's, came with the request.
        :param call: the uuid of the call over the bus; None if there is none.
        """
        super().__init__(**kwargs)
        self._enforcer = enforcer
        self.vouched = bool(vouched)
        self.call = call

    def to_dict(self) -> dict[str, typing.Any]:
        # oslo.context reads the name of the user, and does not write it.
        own = {'user_name': self.user_name, 'vouched': self.vouched, 'call': self.call}
        return super().to_dict() | own

    def can(self, rule: str, target: dict[str, typing.Any] | None = None) -> None:
        """Return if the rule allows the caller.

        :param target: the object of the action; the caller's own project by default.
        :raises cyborg_lite.exception.NotAuthorized: otherwise.
        """
        if not self.allows(rule, target):
            raise exception.NotAuthorized(resource=rule, needed=self._needed(rule, target))

    def _needed(self, rule: str, target: dict[str, typing.Any] | None) -> str:
        """What a caller needs for a rule, in words."""
        if not self.project_id:
            return 'a token of a project'
        if target is not None and self.allows(rule):
            # The roles suffice in the caller's own project.
            return f'a caller of project {target["project_id"]:.64}, not of {self.project_id}'
        roles = self._enforcer.roles(rule) if self._enforcer else []
        return f'the role {" or ".join(roles)}' if roles else f'what the rule {rule} says'

    def allows(self, rule: str, target: dict[str, typing.Any] | None = None) -> bool:
        if self._enforcer is None:
            raise RuntimeError('a context without an enforcer cannot authorize')
        # All rules need a project, so tokens of the system or of a domain are refused, even those
        # of administrators. oslo.policy would check the scope, but if a service token comes along
        # keystonemiddleware keeps only the scope of that.
        if not self.project_id:
            return False
        target = {'project_id': self.project_id} if target is None else target
        return bool(self._enforcer.authorize(rule, target, self))

    @property
    def user(self) -> str | None:
        """The caller: the name, or the id if no name is known."""
        return self.user_name or self.user_id

    @property
    def scope(self) -> str | None:
        """The project whose objects the caller sees; None for administrators, who see all."""
        return None if self.is_admin else self.project_id or ''


def forget(request_id: str | None = None) -> None:
    """Forget the caller that this thread worked for before.

    oslo.log writes the last context of the thread into each line, so a line about somebody who is
    not known yet would have the name of another.
    """
    RequestContext(request_id=request_id)


@contextlib.contextmanager
def kept() -> collections.abc.Iterator[None]:
    """Work for others in this thread, and then for the same caller as before."""
    caller = context.get_current()
    try:
        yield
    finally:
        if caller is None:
            forget()
        else:
            caller.update_store()


def service() -> RequestContext:
    """The context of the service's own calls."""
    return RequestContext(is_admin=True, overwrite=False)
