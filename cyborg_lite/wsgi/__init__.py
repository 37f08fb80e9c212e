# SPDX-License-Identifier: Apache-2.0
"""The module that web servers load."""
