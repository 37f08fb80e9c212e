# SPDX-License-Identifier: Apache-2.0
"""The microversions, and which of them a request asks for.

Source: the API-SIG guideline on microversions.  All are Cyborg's: a later microversion of Cyborg
must not have another meaning here.  Our additions are resources of their own, which are the same
at every microversion.
"""

from __future__ import annotations

import re

import microversion_parse

from cyborg_lite import exception
from cyborg_lite.model import Version

HEADER = 'OpenStack-API-Version'
SERVICE_TYPE = 'accelerator'

VERSIONS: tuple[Version, ...] = (
    (2, 0),  # the first of Cyborg's v2 API; Nova and Tempest use no other
    (2, 1),  # an administrator may give /project_id when a request is bound
    (2, 2),  # a device profile can be fetched by its name
    (2, 3),  # devices show their status
)
MIN = VERSIONS[0]
MAX = VERSIONS[-1]


class Unparsable(exception.NotAcceptable):
    """The header cannot be parsed."""


def text(version: Version) -> str:
    return f'{version[0]}.{version[1]}'


def negotiate(header: str | None) -> Version:
    """The microversion that the header requests; the lowest one if it requests none of ours.

    :raises Unparsable: when it cannot be parsed.
    :raises cyborg_lite.exception.NotAcceptable: when there is no such version.
    """
    if not header:
        return MIN
    asked = microversion_parse.get_version({HEADER.lower(): header}, SERVICE_TYPE)
    if asked is None and ' ' not in header.strip():
        asked = header.strip()  # python-cyborgclient and curl users leave the service type out
    if asked is None:
        return MIN  # the header is for another service
    if asked == 'latest':
        return MAX
    match = re.fullmatch(r'(\d{1,4})\.(\d{1,4})', asked)
    if not match:
        raise Unparsable(
            reason=f'Invalid {HEADER} {header[:100]!r}: expected "{SERVICE_TYPE} 2.N".'
        )
    version = int(match[1]), int(match[2])
    if version not in VERSIONS:
        raise exception.NotAcceptable(
            reason=f'Version {asked} is not supported. Use one of '
            f'{", ".join(text(v) for v in VERSIONS)}.'
        )
    return version


def headers(version: Version | None) -> dict[str, str]:
    """The version headers of an answer: the version used, if any, and the range."""
    said = {
        'OpenStack-API-Minimum-Version': text(MIN),
        'OpenStack-API-Maximum-Version': text(MAX),
        'Vary': HEADER,
    }
    return said if version is None else {HEADER: f'{SERVICE_TYPE} {text(version)}', **said}
