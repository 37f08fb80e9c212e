# SPDX-License-Identifier: Apache-2.0
"""The REST API: reads the database, and sends what is to be changed to a conductor."""
