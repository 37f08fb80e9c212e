# SPDX-License-Identifier: Apache-2.0
"""Accelerators as a service: find them, keep them, bind them to workloads."""
