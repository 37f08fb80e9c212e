# SPDX-License-Identifier: Apache-2.0
"""The only writer: keeps what agents report, and decides."""
