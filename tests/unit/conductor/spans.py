# SPDX-License-Identifier: Apache-2.0
"""When requests held something, as a test has seen it: usage and histories must say the same."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import datetime

from cyborg_lite.model import base


@dataclasses.dataclass
class Span:
    """A time in which a request held something; it has no end while that goes on."""

    project: str
    start: datetime.datetime
    end: datetime.datetime | None = None


class Spans:
    def __init__(self) -> None:
        #: by request, the earliest first
        self.of: dict[str, list[Span]] = collections.defaultdict(list)

    def see(self, holders: collections.abc.Mapping[str, str], now: datetime.datetime) -> None:
        """Note which requests hold something now, each with its project."""
        for uuid, spans in self.of.items():
            if spans[-1].end is None and uuid not in holders:
                spans[-1].end = now
        for uuid, project in holders.items():
            if uuid not in self.of or self.of[uuid][-1].end is not None:
                self.of[uuid].append(Span(project, now))

    def turns(self, uuid: str) -> list[str]:
        """When a request began to hold something, and when that ended, in turn."""
        spans = self.of.get(uuid, [])
        moments = [moment for each in spans for moment in (each.start, each.end) if moment]
        return [base.iso(moment) for moment in moments]

    def over(self) -> list[str]:
        """The requests, each as often as it has given back what it held."""
        return [uuid for uuid, spans in self.of.items() for each in spans if each.end is not None]

    def seconds(self, now: datetime.datetime) -> collections.Counter[str]:
        """By project, for how many seconds its requests have held something until now.

        Each moment counts as its whole second.
        """
        found: collections.Counter[str] = collections.Counter()
        for each in (span for spans in self.of.values() for span in spans):
            found[each.project] += _second(each.end or now) - _second(each.start)
        return +found


def _second(moment: datetime.datetime) -> int:
    return int(moment.replace(tzinfo=datetime.UTC).timestamp())
