#!/usr/bin/env bash
# Prints, on stdout, only the path of a folder with prometheus, promtool, alertmanager and amtool. It downloads Debian's packages if
# they are missing, unless called with --here. It leaves nothing running: the caller runs the programs on its own ports.
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
    can_start_alertmanager
}

# Alertmanager's --version works even if its templates are missing. With an invalid port, it ends after loading its configuration and
# its templates, with an error about the port only.
can_start_alertmanager() {
    local folder output
    folder=$(mktemp -d)
    printf 'route: {receiver: none}\nreceivers: [{name: none}]\n' >"$folder/config.yml"
    output=$(timeout 60 "$tools/alertmanager" --config.file="$folder/config.yml" --storage.path="$folder/data" \
        --cluster.listen-address= --web.listen-address=127.0.0.1:99999 2>&1) || true
    rm -rf "$folder"
    [[ $output == *"listen tcp"* ]] && return
    say "$(readlink -f "$tools/alertmanager") does not start: ${output##*$'\n'}"
    return 1
}

# link NAME CANDIDATE...: links the first candidate that is on PATH, under that name.
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

link_all() {
    mkdir -p "$tools"
    # Debian's name comes first, then the name in the project's own archives.
    link prometheus prometheus && link promtool promtool && link alertmanager prometheus-alertmanager alertmanager &&
        link amtool amtool
}

from_path() { link_all && is_whole; }

# As root, apt would download as another user, who may not write to this folder.
apt() { (cd "$1" && apt-get -qq -o APT::Sandbox::User=root "${@:2}") >&2; }

# The packages are unpacked, not installed: installed, they would run as system services on their default ports.
from_debian() {
    local folder package
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    folder=$(mktemp -d)
    # shellcheck disable=SC2064  # expands the local variable now
    trap "rm -rf '$folder'" EXIT
    say "downloading Debian's packages ${packages[*]}"
    # The system's package list may be missing or old. Only root can update it, so this script then fetches its own.
    local own=(-o "Dir::State::Lists=$folder/lists" -o "Dir::Cache=$folder/cache")
    mkdir -p "$folder"/{lists,cache/archives}/partial
    apt "$folder" download "${packages[@]}" 2>/dev/null ||
        { apt "$folder" update "${own[@]}" && apt "$folder" download "${own[@]}" "${packages[@]}"; } || return 1
    for package in "$folder"/*.deb; do
        dpkg-deb -x "$package" "$tools/debian" || return 1
    done
    PATH=$tools/debian/usr/bin:$PATH link_all && relocate_alertmanager && is_whole
}

# Debian's alertmanager reads its templates from /usr/share/prometheus/alertmanager, and no option changes that. In this copy, the
# path is replaced by one of the same length to file descriptor 9, which a wrapper opens on the unpacked folder. A build with embedded
# templates has no such path, and stays unchanged.
relocate_alertmanager() {
    local there=/usr/share/prometheus/alertmanager here=/proc/self/fd/9///////////////////
    LC_ALL=C sed -i "s#$there#$here#g" "$tools/debian/usr/bin/prometheus-alertmanager"
    rm "$tools/alertmanager"
    cat >"$tools/alertmanager" <<'SH'
#!/bin/sh
tools=$(dirname "$0")
if [ -d "$tools/debian/usr/share/prometheus/alertmanager" ]; then exec 9<"$tools/debian/usr/share/prometheus/alertmanager"; fi
exec "$tools/debian/usr/bin/prometheus-alertmanager" "$@"
SH
    chmod +x "$tools/alertmanager"
}

if [[ ! -d $root/.venv ]]; then
    say "there is no .venv to keep the programs in: run 'make setup' first"
    exit 1
fi
if is_whole || from_path || { [[ ${1:-} != --here ]] && from_debian; }; then
    printf '%s\n' "$tools"
    exit
fi
say "no working Prometheus and Alertmanager found: run scripts/ensure_prometheus.sh, or install the Debian packages ${packages[*]}"
exit 1
