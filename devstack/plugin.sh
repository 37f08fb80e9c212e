#!/bin/bash
#
# What devstack does about cyborg_lite in each of its phases

CYBORG_LITE_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$CYBORG_LITE_DIR/devstack/lib/cyborg_lite"

case "$1 $2" in
    "stack pre-install")
        if is_service_enabled cyborg-lite-conductor; then
            for service in key placement-api; do
                is_service_enabled $service || die $LINENO "cyborg_lite needs $service"
            done
        fi
        ;;
    "stack install")
        echo_summary "Installing cyborg_lite"
        install_cyborg_lite
        ;;
    "stack post-config")
        echo_summary "Configuring cyborg_lite"
        configure_cyborg_lite
        if is_service_enabled cyborg-lite-api; then
            create_cyborg_lite_accounts
        fi
        if is_service_enabled cyborg-lite-conductor; then
            init_cyborg_lite
        fi
        ;;
    "stack extra")
        echo_summary "Starting cyborg_lite"
        start_cyborg_lite
        ;;
    "stack test-config")
        if is_service_enabled tempest; then
            configure_tempest_for_cyborg_lite
        fi
        ;;
    "unstack "*)
        stop_cyborg_lite
        ;;
    "clean "*)
        cleanup_cyborg_lite
        ;;
esac
