# SPDX-License-Identifier: Apache-2.0
import cyborg_lite.cmd  # noqa: F401 - native threads, before oslo.service is imported
