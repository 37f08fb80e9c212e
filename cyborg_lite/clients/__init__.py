# SPDX-License-Identifier: Apache-2.0
"""Thin clients of other services, over keystoneauth."""

from __future__ import annotations

from keystoneauth1 import adapter
from keystoneauth1 import loading
from oslo_config import cfg


def configured(conf: cfg.ConfigOpts, group: str) -> bool:
    """Whether the options of a service are set."""
    return bool(conf[group].auth_type or conf[group].auth_section)


def connect(conf: cfg.ConfigOpts, group: str, microversion: str) -> adapter.Adapter:
    """A client of a service in the catalogue, with the user of its group of options."""
    auth = loading.load_auth_from_conf_options(conf, group)
    # A redirect could send our token to another server.
    session = loading.load_session_from_conf_options(conf, group, auth=auth, redirect=False)
    return loading.load_adapter_from_conf_options(
        conf,
        group,
        session=session,
        auth=auth,
        default_microversion=microversion,
        additional_headers={'Accept': 'application/json'},
    )
