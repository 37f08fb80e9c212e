# SPDX-License-Identifier: Apache-2.0
"""The length of the search of state machines: shorter in CI than at night."""

import os

import hypothesis


def settings(examples: int, nightly: int, steps: int = 25) -> hypothesis.settings:
    """The settings for CYBORG_LITE_HYPOTHESIS: ``gate``, which is deterministic, ``mutants``, which
    stops at the first failure, or ``nightly``.

    :param examples: the number of runs in CI, each with so many steps; at night with 50.
    """
    gate = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
    )
    return {
        'gate': gate,
        # To make a failure small takes minutes.
        'mutants': hypothesis.settings(gate, phases=[hypothesis.Phase.generate]),
        'nightly': hypothesis.settings(max_examples=nightly, stateful_step_count=50, deadline=None),
    }[os.environ.get('CYBORG_LITE_HYPOTHESIS', 'gate')]
