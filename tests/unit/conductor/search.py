# SPDX-License-Identifier: Apache-2.0
"""The length of the search of state machines: shorter in CI than at night."""

import os

import hypothesis


def settings(examples: int, nightly: int, steps: int = 25) -> hypothesis.settings:
    """The settings for CYBORG_LITE_HYPOTHESIS: ``gate``, which is deterministic, or ``nightly``.

    :param examples: the number of runs in CI, each with so many steps; at night with 50.
    """
    return {
        'gate': hypothesis.settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
        ),
        'nightly': hypothesis.settings(max_examples=nightly, stateful_step_count=50, deadline=None),
    }[os.environ.get('CYBORG_LITE_HYPOTHESIS', 'gate')]
