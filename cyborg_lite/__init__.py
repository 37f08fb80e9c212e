# SPDX-License-Identifier: Apache-2.0
"""Accelerators as a service: discovery, inventory, and binding to workloads.

:func:`allocate` and :func:`allocation` are for programs that use accelerators.
"""

from cyborg_lite.client import allocate as allocate
from cyborg_lite.client import allocation as allocation
