# SPDX-License-Identifier: Apache-2.0
"""A whole machine with systemd, on which people follow the guide: ``tox -e machine``."""
