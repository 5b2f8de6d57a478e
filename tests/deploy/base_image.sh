#!/usr/bin/env bash
# base_image.sh NAME PYTHON: makes what python:3.x-slim is, where no registry is in reach: a minimal Debian by mmdebstrap,
# and in /usr/local the installation that PYTHON belongs to, without its packages. For tests only.
set -euo pipefail

name=$1
prefix=$("$2" -c 'import sys; print(sys.base_prefix)')
version=$("$2" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

container=$(buildah from scratch)
trap 'buildah rm "$container" >/dev/null' EXIT
root=$(buildah mount "$container")
# libffi8: for its module ctypes; the other libraries that matter are in a minimal Debian.
mmdebstrap --quiet --variant=minbase --include=ca-certificates,libffi8 trixie "$root"

mkdir -p "$root"/usr/local/{bin,lib}
mapfile -t library < <(cd "$prefix" && compgen -G "lib/libpython$version*.so*" || true)
tar -C "$prefix" -cf - --exclude='__pycache__' --exclude='*.a' --exclude="lib/python$version/site-packages/*" \
    --exclude="lib/python$version/test" --exclude='_tkinter*' --exclude='tkinter' --exclude='idlelib' \
    "bin/python$version" "lib/python$version" "${library[@]}" |
    tar -C "$root/usr/local" -xf - --no-same-owner
ln -s "python$version" "$root/usr/local/bin/python3"
ln -s python3 "$root/usr/local/bin/python"
chroot "$root" ldconfig
chroot "$root" python3 -c "import ctypes, ensurepip, ssl, venv"
buildah commit --quiet "$container" "$name"
