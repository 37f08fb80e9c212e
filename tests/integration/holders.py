# SPDX-License-Identifier: Apache-2.0
"""Local processes that lease an accelerator from the agent of a deployment."""

from __future__ import annotations

import os
import pathlib
import pwd
import subprocess

from cyborg_lite import model
from tests.integration import deployment as deployment_
from tests.integration import process

#: The local user whose processes lease.
USER = pwd.getpwuid(os.getuid()).pw_name


class Holder:
    """A process that leases one accelerator, waits for it, and holds it until it is ended.

    Its command fails if its agent dies before it has the lease: it is started again, as a user
    would do.
    """

    def __init__(self, deployment: deployment_.Deployment, socket: pathlib.Path) -> None:
        self._deployment = deployment
        run = ['run', '--quiet', '--socket', socket, '--class', 'FPGA', '--', 'sleep', '3600']
        self._command = [process.BIN / 'cyborg-lite', *run]
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=process.clean(),
        )

    def until(self, state: str) -> None:
        """Wait until its lease is in this state."""
        process.until(lambda: self._is(state))

    def _is(self, state: str) -> bool:
        if self._process.poll() is not None:
            self._start()
        return self.lease is not None and self.lease.state == state

    @property
    def lease(self) -> model.Allocation | None:
        """The allocation of the process, as it is now."""
        pid = str(self._process.pid)
        for row in self._deployment.rows(model.Allocation):
            if row.state != 'released' and (row.consumer_id or '').split('/')[2:3] == [pid]:
                return row
        return None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
