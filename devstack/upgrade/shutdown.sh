#!/bin/bash
#
# Stop the old release, before grenade upgrades it

set -o errexit

source "$GRENADE_DIR/grenaderc"
source "$GRENADE_DIR/functions"

# The functions are those of the old release.
source "$BASE_DEVSTACK_DIR/functions"
source "$BASE_DEVSTACK_DIR/stackrc"
source "$BASE_DEVSTACK_DIR/lib/tls"
source "$BASE_DEVSTACK_DIR/lib/apache"

CYBORG_LITE_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$CYBORG_LITE_DIR/devstack/lib/cyborg_lite"

set -o xtrace

stop_cyborg_lite
ensure_services_stopped cyborg-lite-api cyborg-lite-conductor cyborg-lite-agent
