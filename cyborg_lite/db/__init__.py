# SPDX-License-Identifier: Apache-2.0
"""Where rows are kept: the engine, the queries that fit any model, and the migrations."""
