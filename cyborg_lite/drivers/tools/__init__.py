# SPDX-License-Identifier: Apache-2.0
"""What tools of vendors print, taken apart for their drivers."""
