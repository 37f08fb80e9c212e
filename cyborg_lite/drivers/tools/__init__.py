# SPDX-License-Identifier: Apache-2.0
"""Parsers for the output of vendors' tools."""
