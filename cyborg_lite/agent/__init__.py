# SPDX-License-Identifier: Apache-2.0
"""The service of each host: it asks the drivers for devices, and reports them."""
