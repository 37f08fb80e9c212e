# SPDX-License-Identifier: Apache-2.0
import http
import inspect
import string

import pytest

from cyborg_lite import exception

KINDS = [
    kind
    for _, kind in inspect.getmembers(exception, inspect.isclass)
    if issubclass(kind, exception.CyborgError)
]


def blanks(kind):
    return {name for _, name, _, _ in string.Formatter().parse(kind.template) if name}


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_has_a_code_and_a_message(kind):
    kwargs = {name: 'x' for name in blanks(kind)}
    error = kind(**kwargs)
    assert http.HTTPStatus(error.code)
    assert str(error) == error.message
    assert error.kwargs == kwargs
    # oslo.messaging would hand them on beside the keywords.
    assert error.args == ()
    assert kind.template.endswith(('.', '}'))


def test_errors_of_clients_have_client_statuses():
    assert {kind.code for kind in KINDS if kind.code >= 500} <= {500, 503}


def test_text_with_braces_is_left_alone():
    assert str(exception.Invalid(reason='expected {a}')) == 'expected {a}'
