# SPDX-License-Identifier: Apache-2.0
"""How a workload gets the accelerators of an allocation.

There is one document for each allocation and host.  Each view renders it for one kind of
workload.  A data file beside each driver describes what its cards need, see :mod:`.needs`.
"""

from cyborg_lite.delivery.documents import document
from cyborg_lite.delivery.documents import nodes
from cyborg_lite.delivery.documents import present
from cyborg_lite.delivery.documents import resources
from cyborg_lite.delivery.views import render
from cyborg_lite.delivery.views import VIEWS

__all__ = ('VIEWS', 'document', 'nodes', 'present', 'render', 'resources')
