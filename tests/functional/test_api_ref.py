# SPDX-License-Identifier: Apache-2.0
"""The API reference is complete, and its samples equal real answers."""

import importlib.util

import pytest

from tests.functional import samples

API_REF = samples.DIRECTORY.parent


@pytest.fixture
def validator():
    """The check of ``tox -e api-ref``."""
    spec = importlib.util.spec_from_file_location('validator', API_REF / 'ext/validator.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_complete(validator):
    assert validator.problems() == []


def test_the_samples_are_what_the_service_answers(service):
    """If they are not: python -m tests.functional.samples"""
    found = {
        f'{path.parent.name}/{path.name}': path.read_text()
        for path in samples.DIRECTORY.glob('*/*.json')
    }
    assert found == samples.texts(samples.converse(service, '2.3'))
