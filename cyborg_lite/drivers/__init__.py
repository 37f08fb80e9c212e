# SPDX-License-Identifier: Apache-2.0
"""The drivers that come with us, one file for each family of cards."""
