# SPDX-License-Identifier: Apache-2.0
"""What web servers load."""
