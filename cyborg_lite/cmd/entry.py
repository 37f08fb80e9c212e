# SPDX-License-Identifier: Apache-2.0
"""``cyborg-lite`` from its first moment: Ctrl-C ends it without a traceback while modules load."""

from __future__ import annotations

#: The status of a command that Ctrl-C ended: 128 and the number of SIGINT.
INTERRUPTED = 130


def main() -> int:
    try:
        from cyborg_lite.cmd import main as command

        return command.main()
    except KeyboardInterrupt:
        return INTERRUPTED
