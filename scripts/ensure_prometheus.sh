#!/usr/bin/env bash
# Prints a folder that has a real prometheus, promtool, alertmanager and amtool, and nothing else, on stdout. Gets Debian's where they
# are not here, unless it is called with --here. Starts nothing, stops nothing: whoever asked runs them on ports of its own.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools=$root/.venv/prometheus
packages=(prometheus promtool prometheus-alertmanager)

say() { printf 'prometheus: %s\n' "$*" >&2; }

is_whole() {
    local tool
    for tool in prometheus promtool alertmanager amtool; do
        "$tools/$tool" --version >/dev/null 2>&1 || return 1
    done
}

# link NAME CANDIDATE...: the first of the candidates that is on PATH, under that name.
link() {
    local name=$1 candidate path
    for candidate in "${@:2}"; do
        if path=$(command -v "$candidate"); then
            ln -sfn "$path" "$tools/$name"
            return
        fi
    done
    return 1
}

from_path() {
    mkdir -p "$tools"
    # Debian's name first, then that of the project's own archives.
    link prometheus prometheus && link promtool promtool && link alertmanager prometheus-alertmanager alertmanager &&
        link amtool amtool && is_whole
}

# As root, apt would rather download as another user, who may not write here.
download() { (cd "$1" && apt-get download -qq -o APT::Sandbox::User=root "${packages[@]}") >&2; }

# Unpacked and not installed: installed, they would start as system services, on their usual ports, and stay.
from_debian() {
    local folder package
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    folder=$(mktemp -d)
    # shellcheck disable=SC2064  # the folder's name now, which is local
    trap "rm -rf '$folder'" EXIT
    say "downloading Debian's packages ${packages[*]}"
    # The list of packages may be missing or old: then it is fetched, where this user may, and tried again.
    download "$folder" || { as_root apt-get update -qq >&2 && download "$folder"; } || return 1
    for package in "$folder"/*.deb; do
        dpkg-deb -x "$package" "$tools/debian" || return 1
    done
    PATH=$tools/debian/usr/bin:$PATH from_path
}

as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    else
        command -v sudo >/dev/null && sudo -n "$@"
    fi
}

if [[ ! -d $root/.venv ]]; then
    say "no .venv here, which they are kept in: run 'make setup' first"
    exit 1
fi
if is_whole || from_path || { [[ ${1:-} != --here ]] && from_debian; }; then
    printf '%s\n' "$tools"
    exit
fi
say "not here: run scripts/ensure_prometheus.sh, or install the Debian packages ${packages[*]}"
exit 1
