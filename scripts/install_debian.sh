#!/usr/bin/env bash
# install_debian.sh PACKAGE...: installs Debian packages, and fails if this user may not. It prints to stderr only.
set -euo pipefail

# Two installations at once would fail on apt's locks.
exec 9<"$0"
flock 9

as_root=()
command -v apt-get >/dev/null || exit 1
if [[ $EUID -ne 0 ]]; then
    command -v sudo >/dev/null && sudo -n true 2>/dev/null || exit 1
    as_root=(sudo -n)
fi
printf 'installing Debian packages: %s\n' "$*" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >>"$log" 2>&1; }
install() { apt install -y --no-install-recommends "$@"; }
# The package list may be missing or old: update it and try again.
if ! install "$@" && ! { apt update && install "$@"; }; then
    cat "$log" >&2
    exit 1
fi
