# SPDX-License-Identifier: Apache-2.0
"""Where a request comes from, as far as that decides whether it is served."""

from __future__ import annotations

import ipaddress


def is_loopback(address: str) -> bool:
    """Whether this is an IP address that only this machine reaches."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    # A socket for IPv6 shows IPv4 in this form.
    mapped = getattr(found, 'ipv4_mapped', None)
    return (mapped or found).is_loopback
