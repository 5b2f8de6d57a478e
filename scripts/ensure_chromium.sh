#!/usr/bin/env bash
# Prints the path of a Chromium binary, and nothing else, on stdout; gets Debian's where none is there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

on_path() {
    local name
    for name in chromium chromium-browser google-chrome; do
        command -v "$name" && return
    done
    return 1
}

on_path && exit
"$root/scripts/install_debian.sh" chromium && on_path && exit
printf 'no Chromium here: install the Debian package chromium\n' >&2
exit 1
