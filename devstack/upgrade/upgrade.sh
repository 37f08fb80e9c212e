#!/bin/bash
#
# Upgrade to this release, after grenade has stopped the old one

set -o errexit

source "$GRENADE_DIR/grenaderc"
source "$GRENADE_DIR/functions"

# The functions are those of the new release.
source "$TARGET_DEVSTACK_DIR/functions"
source "$TARGET_DEVSTACK_DIR/stackrc"
source "$TARGET_DEVSTACK_DIR/lib/tls"
source "$TARGET_DEVSTACK_DIR/lib/apache"

CYBORG_LITE_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$CYBORG_LITE_DIR/devstack/lib/cyborg_lite"

set -o xtrace

# What was there before, for whoever looks into a failure.
[[ -d $SAVE_DIR/etc.cyborg_lite ]] || cp -pr "$CYBORG_LITE_CONF_DIR" "$SAVE_DIR/etc.cyborg_lite"

install_cyborg_lite

# For a release that needs more than this: devstack/upgrade/from-BRANCH/upgrade-cyborg_lite
upgrade_project cyborg_lite "$(dirname "${BASH_SOURCE[0]}")" "$BASE_DEVSTACK_BRANCH" \
    "$TARGET_DEVSTACK_BRANCH"

dbsync="$CYBORG_LITE_BIN_DIR/cyborg-lite-dbsync --config-file $CYBORG_LITE_CONF"
$dbsync upgrade
$dbsync online_data_migrations

# 1 is a warning, 2 has to be mended.
result=0
"$CYBORG_LITE_BIN_DIR/cyborg-lite-status" --config-file "$CYBORG_LITE_CONF" upgrade check ||
    result=$?
if [[ $result -gt 1 ]]; then
    die $LINENO "cyborg-lite-status upgrade check: $result"
fi

start_cyborg_lite
ensure_services_started cyborg-lite-api cyborg-lite-conductor cyborg-lite-agent
