# SPDX-License-Identifier: Apache-2.0
"""What runs on each host: asks the drivers what is there, and reports it."""
