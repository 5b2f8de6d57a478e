#!/usr/bin/env bash
# Prints a folder that has a real prometheus, promtool, alertmanager and amtool, and nothing else, on stdout. Gets Debian's where they
# are not here, unless it is called with --here. Leaves nothing running: whoever asked runs them on ports of its own.
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

# Its --version works even where its templates are missing. On a port that can't exist it ends once it has loaded its configuration and
# the templates: it then complains of the port alone.
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

link_all() {
    mkdir -p "$tools"
    # Debian's name first, then that of the project's own archives.
    link prometheus prometheus && link promtool promtool && link alertmanager prometheus-alertmanager alertmanager &&
        link amtool amtool
}

from_path() { link_all && is_whole; }

# As root, apt would rather download as another user, who may not write here.
apt() { (cd "$1" && apt-get -qq -o APT::Sandbox::User=root "${@:2}") >&2; }

# Unpacked and not installed: installed, they would start as system services, on their usual ports, and stay.
from_debian() {
    local folder package
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    folder=$(mktemp -d)
    # shellcheck disable=SC2064  # the folder's name now, which is local
    trap "rm -rf '$folder'" EXIT
    say "downloading Debian's packages ${packages[*]}"
    # The system's list of packages may be missing or old. Without root it can't be fetched, but one of this script's own can.
    local own=(-o "Dir::State::Lists=$folder/lists" -o "Dir::Cache=$folder/cache")
    mkdir -p "$folder"/{lists,cache/archives}/partial
    apt "$folder" download "${packages[@]}" 2>/dev/null ||
        { apt "$folder" update "${own[@]}" && apt "$folder" download "${own[@]}" "${packages[@]}"; } || return 1
    for package in "$folder"/*.deb; do
        dpkg-deb -x "$package" "$tools/debian" || return 1
    done
    PATH=$tools/debian/usr/bin:$PATH link_all && relocate_alertmanager && is_whole
}

# Debian's alertmanager reads its templates in /usr/share/prometheus/alertmanager, and no option says otherwise. In the copy here that
# path becomes one of the same length that leads to descriptor 9, which a wrapper opens on the unpacked folder. A build that embeds its
# templates has no such path, and is left as it is.
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
    say "no .venv here, which they are kept in: run 'make setup' first"
    exit 1
fi
if is_whole || from_path || { [[ ${1:-} != --here ]] && from_debian; }; then
    printf '%s\n' "$tools"
    exit
fi
say "no Prometheus and Alertmanager that start: run scripts/ensure_prometheus.sh, or install the Debian packages ${packages[*]}"
exit 1
