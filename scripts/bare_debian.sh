#!/usr/bin/env bash
# bare_debian.sh FOLDER PYTHON PACKAGE...: makes a minimal Debian with the packages in FOLDER. It needs root and mmdebstrap. PYTHON, if
# not empty, is an interpreter, whose installation is copied to /usr/local without its packages.
set -euo pipefail

folder=$1 python=$2
packages=("${@:3}")
# Python's module ctypes needs libffi8; a minimal Debian has all other libraries that Python needs.
if [[ -n $python ]]; then packages+=(libffi8); fi
mmdebstrap --quiet --variant=minbase --include="$(IFS=, && echo "${packages[*]}")" trixie "$folder"
if [[ -z $python ]]; then exit; fi

prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
mkdir -p "$folder"/usr/local/{bin,lib}
mapfile -t library < <(cd "$prefix" && compgen -G "lib/libpython$version*.so*" || true)
tar -C "$prefix" -cf - --exclude='__pycache__' --exclude='*.a' --exclude="lib/python$version/site-packages/*" \
    --exclude="lib/python$version/test" --exclude='_tkinter*' --exclude='tkinter' --exclude='idlelib' \
    "bin/python$version" "include/python$version" "lib/python$version" "${library[@]}" |
    tar -C "$folder/usr/local" -xf - --no-same-owner
ln -s "python$version" "$folder/usr/local/bin/python3"
ln -s python3 "$folder/usr/local/bin/python"
chroot "$folder" ldconfig
chroot "$folder" python3 -c "import ctypes, ensurepip, ssl, venv"
