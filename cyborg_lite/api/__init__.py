# SPDX-License-Identifier: Apache-2.0
"""The REST API: it reads the database, and sends changes to a conductor."""
