# SPDX-License-Identifier: Apache-2.0
"""The web server of ``cyborg-lite up``: asyncio reads and writes, threads run the application.

A thread is used only once the whole request has arrived, so a slow client occupies a connection
but no thread. Sizes, times and the number of connections are bounded for all clients.
"""

from cyborg_lite.server.accepting import Server
from cyborg_lite.server.connection import Limits

__all__ = ('Limits', 'Server')
