# SPDX-License-Identifier: Apache-2.0
"""Why a request can or cannot be allocated: how many accelerators pass each filter."""

from __future__ import annotations

from cyborg_lite.api import types

_NAMES: types.Schema = {'type': 'array', 'items': {'type': 'string'}}

SCHEMA: types.Schema = {
    'type': 'object',
    'required': ['fits', 'alternatives'],
    'additionalProperties': False,
    'properties': {
        'fits': {'type': 'boolean'},
        'alternatives': {
            'type': 'array',
            'items': {
                'type': 'object',
                'required': ['fits', 'fits_if_all_were_free', 'reason', 'requests'],
                'additionalProperties': False,
                'properties': {
                    'fits': {'type': 'boolean'},
                    'fits_if_all_were_free': {'type': 'boolean'},
                    # A conductor of the release before does not say it.
                    'fits_at': {'type': ['string', 'null']},
                    'reason': {'type': ['string', 'null']},
                    'requests': {
                        'type': 'array',
                        'items': {
                            'type': 'object',
                            'additionalProperties': False,
                            'required': [
                                'resource_class', 'amount', 'required', 'forbidden', 'candidates',
                                'removed', 'left',
                            ],
                            'properties': {
                                'resource_class': {'type': 'string'},
                                'amount': {'type': 'integer'},
                                'required': _NAMES,
                                'forbidden': _NAMES,
                                'candidates': {'type': 'integer'},
                                'removed': {
                                    'type': 'object',
                                    'additionalProperties': {'type': 'integer'},
                                },
                                'left': {'type': 'integer'},
                            },
                        },
                    },
                },
            },
        },
    },
}  # fmt: skip
