# SPDX-License-Identifier: Apache-2.0
"""The agents of many hosts in one process: each is what ``cyborg-lite-agent`` is on one host."""

from __future__ import annotations

import pathlib
import sys

from oslo_config import cfg
import yaml

from cyborg_lite import conf as options
from cyborg_lite import driver
from cyborg_lite import rpc
from cyborg_lite import service
from cyborg_lite.driver import host as hosts
from cyborg_lite.driver import sysfs


def lay_out(place: pathlib.Path, number: int) -> list[driver.Host]:
    """So many copies of the hosts that we ship, in turn, each under a name of its own."""
    texts = sorted(hosts.shipped().items())
    made = []
    for count in range(number):
        name, text = texts[count % len(texts)]
        # Every scalar is text.
        described = yaml.load(text, yaml.BaseLoader)
        described['name'] = f'{name}-{place.name}-{count}'
        file = place / f'{described["name"]}.yaml'
        file.write_text(yaml.safe_dump(described))
        made.append(hosts.find(str(file), place / 'hosts'))
        file.unlink()
    return made


class Cards:
    """The cards of a host that was laid out: they can be pulled, and put back."""

    def __init__(self, host: driver.Host) -> None:
        self._functions = host.root / sysfs.DEVICES
        self._pulled = host.root / 'pulled'
        self._pulled.mkdir(exist_ok=True)

    def pull(self, address: str) -> None:
        (self._functions / address).rename(self._pulled / address)

    def put_back(self) -> None:
        for card in list(self._pulled.iterdir()):
            card.rename(self._functions / card.name)


class Agents:
    """Started and stopped together."""

    def __init__(self, conf: cfg.ConfigOpts, place: pathlib.Path) -> None:
        bus = rpc.Bus(conf)
        found = [driver.Host(path.name, path) for path in sorted((place / 'hosts').iterdir())]
        self._agents = [service.Agent(conf, bus, host) for host in found]

    def start(self) -> None:
        for each in self._agents:
            each.start()

    def stop(self) -> None:
        for each in self._agents:
            each.stop()


def main() -> int:
    """``agents PLACE --config-file FILE``: those whose hosts are laid out there."""
    _, place, *arguments = sys.argv
    conf = options.load(arguments)
    return service.run(conf, lambda: Agents(conf, pathlib.Path(place)))
