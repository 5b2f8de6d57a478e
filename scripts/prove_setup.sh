#!/usr/bin/env bash
# Tests set-up on a clean machine: makes a minimal Debian with git, make and Python in a temporary folder, clones
# HEAD there, and runs in it, as root in a chroot:
#
#   scripts/prove_setup.sh [ARGUMENT...]    `make serve` until the first score, then `make test`; arguments go to pytest
#   scripts/prove_setup.sh --quick          `make serve` until the first score, then installs the tools that tests need
#
# It prints the versions of these tools at the end. It exits with 0 on success, and with 2 if it can't make a Debian here: it needs root,
# mmdebstrap (installed if necessary) and 10 GB in TMPDIR (/var/tmp). Mounts and processes are in separate namespaces, so
# none of them remain, however the script ends.
#
#   PYTHON=/path/to/python   its installation is copied instead of Debian's python3. Without PYTHON, python3 is copied if
#                            pip's find-links is a folder, whose wheels are for that Python.
#
# pip's own settings (index, find-links, certificate) apply inside. Commit first: only commits are tested.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

say() { printf 'set-up: %s\n' "$*" >&2; }
impossible() {
    say "$*"
    exit 2
}

[[ $EUID -eq 0 ]] || impossible "a chroot needs root"
unshare --mount --pid --fork true || impossible "this root user may not mount"
command -v mmdebstrap >/dev/null || scripts/install_debian.sh mmdebstrap || impossible "install the Debian package mmdebstrap"

folder=$(mktemp -d "${TMPDIR:-/var/tmp}/notegrade-set-up-XXXXXX")
debian=$folder/debian
namespace= # the ancestor of all processes in the chroot

# shellcheck disable=SC2329 # the trap calls it
clean_up() {
    if [[ -n $namespace ]]; then
        # Its child is the first process of the PID namespace: all others end with it.
        xargs -r kill -KILL <"/proc/$namespace/task/$namespace/children" 2>/dev/null || true
        wait "$namespace" || true
    fi
    rm -rf --one-file-system "$folder"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- a minimal Debian --------------------------------------------------------------------------------------------

certificates='' wheels=''
while IFS='=' read -r what path; do
    case $what in
        ca.crt) certificates=$path ;;
        wheels) wheels=$path ;;
    esac
done < <(python3 scripts/pip_settings_for_a_root.py "$folder/pip.conf")
python=${PYTHON:-}
packages=(ca-certificates git make)
if [[ -z $python && -n $wheels ]]; then python=python3; fi
if [[ -z $python ]]; then packages+=(python3); fi

say "making a minimal Debian with ${packages[*]}${python:+, and a copy of $(command -v "$python")}"
scripts/bare_debian.sh "$debian" "$python" "${packages[@]}" || impossible "mmdebstrap failed: the reason is above"
install -m 600 "$folder/pip.conf" "$debian/etc/pip.conf"
# A minimal Debian lacks name servers and the name localhost.
for file in /etc/resolv.conf /etc/hosts; do cat "$file" >"$debian$file"; done
if [[ -n $certificates ]]; then cat "$certificates" >"$debian/etc/ssl/certs/ca-certificates.crt"; fi
if [[ -n $wheels ]]; then
    mkdir -p "$debian/srv/wheels"
    printf 'find-links = /srv/wheels\n' >>"$debian/etc/pip.conf"
fi
git clone --quiet --bare "file://$root" "$debian/srv/notegrade.git"

# --- the script that runs in it ----------------------------------------------------------------------------------

cat >"$debian/srv/first_score.py" <<'PYTHON'
"""first_score.py PORT PID: wait until the service on that port has scored a note; fails once the process has ended."""

import json
import os
import sys
import time
import urllib.request

port, process = map(int, sys.argv[1:])
url = f"http://127.0.0.1:{port}"
body = {"query": "how to soak beans", "notes": [{"id": "1", "body": "Soak dried beans overnight."}], "deadline_ms": 60000}
while True:
    os.kill(process, 0)
    try:
        urllib.request.urlopen(f"{url}/readyz", timeout=10)
        break
    except OSError:  # the service does not listen yet, or is not ready
        time.sleep(0.5)
request = urllib.request.Request(f"{url}/score", json.dumps(body).encode(), {"content-type": "application/json"})
[result] = json.load(urllib.request.urlopen(request, timeout=90))["results"]
print(result)
assert result["outcome"] == "scored"
PYTHON

cat >"$debian/srv/prove.sh" <<'BASH'
set -uo pipefail
say() { printf 'set-up: %s\n' "$*"; }
cd /root || exit
SECONDS=0
git clone --quiet /srv/notegrade.git notegrade && cd notegrade || exit

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
set -m # a process group of its own, to interrupt as Ctrl-C does
make serve PORT="$port" &
service=$!
set +m
python3 /srv/first_score.py "$port" "$service" || exit
first_score_s=$SECONDS
say "the first score arrived $first_score_s s after git clone started"
kill -INT -- "-$service"
wait "$service"

failed=0
if [[ ${1:-} == --quick ]]; then
    make setup-dev || failed=1
else
    make test ARGS="$*" || failed=1
    say "make test ended $SECONDS s after git clone started"
fi
.venv/bin/python -m tests.tools --slow || failed=1
say "the first score arrived $first_score_s s after git clone started"
exit "$failed"
BASH

# --- run it ------------------------------------------------------------------------------------------------------

# It runs as a separate job, which this terminal's signals do not reach: this script ends it. A background job without job control
# would ignore SIGINT, and so would its children.
set -m
# shellcheck disable=SC2016  # the inner shell's variables
unshare --mount --pid --fork --kill-child -- bash -euc '
    debian=$1 wheels=$2
    cd "$debian"
    mount --rbind /dev dev
    mount -t tmpfs tmpfs dev/shm
    mount --rbind /sys sys
    mount -t proc proc proc
    if [[ -n $wheels ]]; then mount --bind -o ro "$wheels" srv/wheels; fi
    exec env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 CI=true \
        chroot . bash /srv/prove.sh "${@:3}"
' bash "$debian" "$wheels" "$@" </dev/null &
namespace=$!
set +m
if wait "$namespace"; then rc=0; else rc=$?; fi
namespace=
exit "$rc"
