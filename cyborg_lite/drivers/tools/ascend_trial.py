# SPDX-License-Identifier: Apache-2.0
"""The trial of an Ascend NPU that was critical, before it counts as good again."""

from __future__ import annotations

import collections.abc
import typing

from cyborg_lite import driver
from cyborg_lite.drivers.tools import ascend_nodes
from cyborg_lite.drivers.tools import npu_smi

#: The reason of a card of which npu-smi does not tell the health of each chip.
NO_ANSWER = 'ascend_no_answer'


def outcome(
    host: driver.Host,
    chips: collections.abc.Sequence[dict[str, typing.Any]],
    asked: collections.abc.Iterable[tuple[str, ...]],
) -> str | None:
    """Why a card may not come back; None if it may.

    :param chips: the facts of its chips
    :param asked: the query for the health of each of them, as arguments of npu-smi
    """
    if not chips:
        return NO_ANSWER
    nodes = ascend_nodes.nodes(host)
    numbers = {chip.get('phy_id', chip.get('logic_id')) for chip in chips} - {None}
    # A recording need not have the nodes.
    if not numbers.issubset(nodes) and (nodes or not host.recorded):
        return 'ascend_no_node'
    try:
        texts = [host.run('npu-smi', *question) for question in asked]
    except driver.ToolError:
        return NO_ANSWER
    health = driver.worst(*(npu_smi.parse_health(text or '') for text in texts))
    return driver.why_not_ok(health, NO_ANSWER)
