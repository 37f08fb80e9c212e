# SPDX-License-Identifier: Apache-2.0
"""The version of CANN, the runtime of Ascend NPUs.

Source: the installation page of each operator library of CANN, and that of MindSpore, which read
the version in these files.
"""

from __future__ import annotations

import pathlib
import re

from cyborg_lite.driver import sysfs

PLACE = pathlib.PurePath('usr/local/Ascend')
#: The files of the toolkit, of 8.5 and later first, and of the packages that only run programs.
FILES = (
    'cann/{}/ascend_toolkit_install.info',
    'ascend-toolkit/latest/{}/ascend_toolkit_install.info',
    'nnae/latest/ascend_nnae_install.info',
    'nnrt/latest/{}/ascend_nnrt_install.info',
)
#: The directories of the architectures: earlier releases call that of Arm arm64.
ARCHITECTURES = ('aarch64-linux', 'x86_64-linux', 'arm64-linux')
#: ``version=8.1.RC1``
VERSION = re.compile(r'^version=(\S{1,64})$', re.MULTILINE)


def version(tree: sysfs.Tree) -> str | None:
    """The version of the first package that the host has, such as ``8.1.RC1``; None if unknown."""
    places = dict.fromkeys(file.format(each) for file in FILES for each in ARCHITECTURES)
    found = (VERSION.search(tree.text(PLACE / place) or '') for place in places)
    return next((match[1] for match in found if match), None)
