#!/usr/bin/env bash
# Proves that set-up works on a machine that has nothing: makes a minimal Debian with git, make and Python in a temporary folder, clones
# HEAD there, and runs in it, as root and by a chroot:
#
#   scripts/prove_setup.sh [ARGUMENT...]    `make serve` to its first score, then `make test`; arguments go to pytest
#   scripts/prove_setup.sh --quick          `make serve` to its first score, and installs the tools that tests need
#
# Ends with the versions of these tools. Exits with 0 if all of it worked, with 2 if there can be no such Debian here: it takes root,
# mmdebstrap (installed if need be) and 10 GB in TMPDIR (/var/tmp). Mounts and processes are in namespaces of their own, so
# that nothing is left of them however this ends.
#
#   PYTHON=/path/to/python   its installation is copied, in place of Debian's own python3. Without it, python3 is copied where
#                            pip's find-links is a folder: wheels there are for that Python.
#
# pip's own settings (index, find-links, certificate) are honoured inside. Commit first: what is not committed is not proved.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

say() { printf 'set-up: %s\n' "$*" >&2; }
impossible() {
    say "$*"
    exit 2
}

[[ $EUID -eq 0 ]] || impossible "a chroot takes root"
unshare --mount --pid --fork true || impossible "this root user may not mount"
command -v mmdebstrap >/dev/null || scripts/install_debian.sh mmdebstrap || impossible "install the Debian package mmdebstrap"

folder=$(mktemp -d "${TMPDIR:-/var/tmp}/notegrade-set-up-XXXXXX")
debian=$folder/debian
namespace= # the process that all of the chroot's descend from

# shellcheck disable=SC2329 # the trap calls it
clean_up() {
    if [[ -n $namespace ]]; then
        # Its child is the first process in there: with it all others end.
        xargs -r kill -KILL <"/proc/$namespace/task/$namespace/children" 2>/dev/null || true
        wait "$namespace" || true
    fi
    rm -rf --one-file-system "$folder"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- a Debian that has nothing -----------------------------------------------------------------------------------

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
# What an installed Debian has and a minimal one lacks: name servers, and the name localhost.
for file in /etc/resolv.conf /etc/hosts; do cat "$file" >"$debian$file"; done
if [[ -n $certificates ]]; then cat "$certificates" >"$debian/etc/ssl/certs/ca-certificates.crt"; fi
if [[ -n $wheels ]]; then
    mkdir -p "$debian/srv/wheels"
    printf 'find-links = /srv/wheels\n' >>"$debian/etc/pip.conf"
fi
git clone --quiet --bare "file://$root" "$debian/srv/notegrade.git"

# --- what is done in it ------------------------------------------------------------------------------------------

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
    except OSError:  # it does not listen yet, or is not ready
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
say "the first score came $first_score_s s after git clone began"
kill -INT -- "-$service"
wait "$service"

failed=0
if [[ ${1:-} == --quick ]]; then
    make setup-dev || failed=1
else
    make test ARGS="$*" || failed=1
    say "make test ended $SECONDS s after git clone began"
fi
.venv/bin/python -m tests.tools --slow || failed=1
say "the first score came $first_score_s s after git clone began"
exit "$failed"
BASH

# --- doing it ----------------------------------------------------------------------------------------------------

# A job of its own, which the signals of this terminal do not reach: this script ends it. In the background without job control
# it would ignore SIGINT, and so would all that it starts.
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
