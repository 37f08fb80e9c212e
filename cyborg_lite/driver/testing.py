# SPDX-License-Identifier: Apache-2.0
"""For authors of drivers: run one over a host that was described or recorded.

::

    def test_acme(tmp_path):
        host = host.find('tests/fixtures/acme.yaml', tmp_path)
        [card] = testing.discover(AcmeNpu, host)
        assert card.model == 'Acme One'
"""

from __future__ import annotations

import json

from oslo_config import cfg

from cyborg_lite import contract
from cyborg_lite import driver


def discover(
    kind: type[driver.Driver], host: driver.Host, conf: cfg.ConfigOpts | None = None
) -> list[driver.Device]:
    """What a driver finds in a host.

    :raises AssertionError: when the driver does not keep to its contract: see
        :mod:`cyborg_lite.contract`.  Nor may a second look at an unchanged host differ.
    """
    subject = kind(host, conf or cfg.ConfigOpts())
    devices, complaints = contract.check(subject.discover())
    if complaints:
        raise AssertionError(f'{kind.name}: {"; ".join(complaints)}')
    first, second = (json.dumps([d.facts() for d in f]) for f in (devices, subject.discover()))
    if first != second:
        raise AssertionError(f'{kind.name}: two looks differ: {first} and {second}')
    return devices
