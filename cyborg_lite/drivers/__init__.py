# SPDX-License-Identifier: Apache-2.0
"""The drivers of this package, one file for each family of cards."""
