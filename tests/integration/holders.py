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
#: What a process executes while it holds its lease.
COMMAND = ['sleep', '3600']


class Holder:
    """A process that leases one accelerator, waits for it, and holds it until it is ended.

    Its command fails if its agent dies before it has the lease: it is started again, as a user
    would do.
    """

    def __init__(self, deployment: deployment_.Deployment, socket: pathlib.Path) -> None:
        self._deployment = deployment
        run = ['run', '--quiet', '--socket', socket, '--class', 'FPGA', '--', *COMMAND]
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
        """Wait until its lease is in this state; of an active one the process has been told."""
        process.until(lambda: self._is(state))

    def _is(self, state: str) -> bool:
        if self._process.poll() is not None:
            self._start()
        if self.lease is None or self.lease.state != state:
            return False
        # The agent may die between the start of the lease and its answer to the process.
        return state != 'active' or self._runs()

    def _runs(self) -> bool:
        """Whether the process executes its command, as it does once it has the lease."""
        return pathlib.Path(f'/proc/{self._process.pid}/comm').read_text().strip() == COMMAND[0]

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
