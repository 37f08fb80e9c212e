# SPDX-License-Identifier: Apache-2.0
"""How long the state machines of a conductor are searched: less in CI than at night."""

import os

import hypothesis


def settings(examples: int, nightly: int, steps: int = 25) -> hypothesis.settings:
    """What CYBORG_LITE_HYPOTHESIS asks for: ``gate``, which is the same each time, or ``nightly``.

    :param examples: how many runs there are in CI, each of so many steps; at night of 50.
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
