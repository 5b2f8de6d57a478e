#!/usr/bin/env bash
# Makes .venv from the pinned locks: `scripts/setup.sh` for serving, `scripts/setup.sh train` with the trainer as well,
# `scripts/setup.sh dev` with the trainer and the dev tools as well.
#
#   PYTHON=python3.12     the interpreter to build .venv with (3.11, 3.12 or 3.13; default: the first one found)
#   WITH_GPU=1            locks/gpu.lock, with upstream vLLM, instead of locks/cpu.lock; later runs keep it until WITH_GPU=0.
#                         `train` has a lock of its own then, locks/train-gpu.lock, with the vLLM that TRL supports;
#                         `scripts/setup.sh verl` installs locks/verl.lock, for RL on verl (Python 3.11 or 3.12)
#
# pip's own settings (index, find-links, certificate) apply, so a mirror needs to be configured only once.
# A second run finds the stamp and does nothing. A changed lock runs the set-up again. An incomplete .venv is recreated.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
venv=.venv
venv_python=$venv/bin/python
unfinished=$venv/.setup-unfinished
started=$SECONDS

say() { printf 'setup %3ds  %s\n' $((SECONDS - started)) "$*" >&2; }
die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# --- the requested set-up, and whether it is done ----------------------------------------------------------------

# The requested build, or the build of the existing .venv.
build=cpu
case "${WITH_GPU:-}" in
    "") [[ -r $venv/.build ]] && build=$(<"$venv/.build") ;;
    0) ;;
    1) build=gpu ;;
    *) die "WITH_GPU is '${WITH_GPU}': use 1 or 0" ;;
esac

kind=${1:-runtime}
case "$kind" in
    runtime) locks=("locks/$build.lock") ;;
    train)
        locks=("locks/$build.lock" locks/train.lock)
        if [[ $build == gpu ]]; then locks=(locks/train-gpu.lock); fi
        ;;
    verl)
        [[ $build == gpu ]] || die "verl needs GPUs: set WITH_GPU=1"
        locks=(locks/verl.lock)
        ;;
    dev) locks=("locks/$build.lock" locks/train.lock locks/dev.lock) ;;
    *) die "unknown set-up '$kind': use 'runtime', 'train', 'verl' or 'dev'" ;;
esac

# The stamp is a digest of all inputs of the set-up, including the folder, since a venv can't be moved.
digest_inputs() {
    { printf '%s\n' "$root" "$build" && cat "$@" locks/uv.lock pyproject.toml scripts/setup.sh; } | sha256sum | cut -d' ' -f1
}
is_done() {
    [[ -x $venv_python && ! -e $unfinished && -r $venv/.stamp-$kind && $(<"$venv/.stamp-$kind") == "$(digest_inputs "${locks[@]}")" ]]
}
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
same_python() { [[ -z ${PYTHON:-} || $(version_of "$PYTHON") == "$(version_of "$venv_python")" ]]; }

if is_done && same_python; then exit 0; fi

# Two set-ups at once would overwrite each other's files: the second one waits, and then usually has nothing to do.
if command -v flock >/dev/null; then
    exec 9<"$root/scripts/setup.sh"
    flock --nonblock 9 || { say "waiting for another set-up of this folder" && flock 9; }
    if is_done && same_python; then exit 0; fi
fi

# --- Python ------------------------------------------------------------------------------------------------------

supported() { [[ $(version_of "$1") =~ ^3\.(11|12|13)$ ]]; }

find_python() {
    if [[ -n ${PYTHON:-} ]]; then
        command -v "$PYTHON" >/dev/null || die "PYTHON is '$PYTHON', which does not exist"
        supported "$PYTHON" || die "PYTHON is '$PYTHON', version $(version_of "$PYTHON"): Notegrade needs Python 3.11, 3.12 or 3.13"
        command -v "$PYTHON"
        return
    fi
    local candidate
    for candidate in python3 python3.12 python3.11 python3.13 python; do
        if command -v "$candidate" >/dev/null && supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11, 3.12 or 3.13 found: install one (on Debian the package python3), or name it with PYTHON=/path/to/python"
}

make_venv() {
    local python package
    python=$(find_python)
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        package=python$(version_of "$python")-venv
        scripts/install_debian.sh "$package" || scripts/install_debian.sh python3-venv || true
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            die "$python can't make virtual environments: install the Debian package $package (or python3-venv) and run this again"
    fi
    say "making $venv with Python $(version_of "$python") ($python)"
    "$python" -m venv "$venv"
}

# vLLM's extension needs libnuma, which a minimal Debian lacks.
ensure_libnuma() {
    local check='import ctypes; ctypes.CDLL("libnuma.so.1")'
    "$venv_python" -c "$check" 2>/dev/null && return
    scripts/install_debian.sh libnuma1 || true
    "$venv_python" -c "$check" 2>/dev/null ||
        die "the engine needs the library libnuma.so.1: install the Debian package libnuma1 and run this again"
}

# --- torch -------------------------------------------------------------------------------------------------------

# The default torch of the package index is a CUDA build of several gigabytes. The CPU build comes from pip's find-links if
# they have the pinned wheel for this Python, otherwise from PyTorch's own index, whose address uv knows.
torch_wheel_on_disk() {
    local folder tag torch
    torch=$(sed -n 's/^torch==//p' locks/cpu.lock)
    tag=cp$("$venv_python" -c 'import sys; print("%d%d" % sys.version_info[:2])')
    local IFS=,
    for folder in ${UV_FIND_LINKS:-}; do
        compgen -G "${folder#file://}/torch-$torch+cpu-$tag-*.whl" >/dev/null && return
    done
    return 1
}

install_cpu_torch() {
    local torch_pins backend=()
    mapfile -t torch_pins < <(grep -E '^torch(vision)?==' locks/cpu.lock)
    if torch_wheel_on_disk; then
        say "installing ${torch_pins[0]}: the CPU wheel on disk"
    else
        say "installing ${torch_pins[0]}: the CPU build, from PyTorch's own index"
        backend=(--torch-backend cpu)
    fi
    # A separate step: with a torch backend, uv looks for torch's related packages, such as triton, in that index only.
    "$venv/bin/uv" pip install "${uv_output[@]}" --no-deps "${backend[@]}" "${torch_pins[@]}" ||
        die "no CPU build of torch found: PyTorch's index must be reachable, or PIP_FIND_LINKS must name a folder with its wheel for this Python"
}

install_locks() {
    local requirements=() lock
    for lock in "${locks[@]}"; do requirements+=(-r "$lock"); done
    say "installing $(cat "${locks[@]}" | grep -c ==) pinned packages"
    "$venv/bin/uv" pip install "${uv_output[@]}" --no-deps "${requirements[@]}" ||
        die "the pinned packages could not be installed: the reason is above"
}

verify() {
    local found actual=gpu
    found=$("$venv_python" -c 'import torch; print(torch.__version__, torch.version.cuda)') ||
        die "torch is installed but can't be imported: the reason is above"
    if [[ $found == *" None" ]]; then actual=cpu; fi
    [[ $actual == "$build" ]] ||
        die "torch ${found% *} is its $actual build, not its $build build: remove $venv, and pip's find-links if they have it, and run this again"
    say "torch ${found% *}, CUDA: ${found#* }"
}

# --- the steps ---------------------------------------------------------------------------------------------------

if [[ -e $venv ]]; then
    reason=
    if [[ -e $unfinished || ! -r $venv/.build || ! -r $venv/.root ]]; then
        reason="an earlier set-up did not finish"
    elif [[ ! -x $venv_python ]]; then
        reason="its Python is missing"
    elif [[ $(<"$venv/.root") != "$root" ]]; then
        reason="it was made for another folder"
    elif [[ $(<"$venv/.build") != "$build" ]]; then
        reason="it has the $(<"$venv/.build") build, not the $build build"
    elif ! same_python; then
        reason="it has Python $(version_of "$venv_python"), PYTHON is $(version_of "$PYTHON" || echo unusable)"
    fi
    if [[ -n $reason ]]; then
        if [[ -n ${PYTHON:-} ]]; then find_python >/dev/null; fi
        say "recreating $venv: $reason"
        rm -rf "$venv"
    fi
fi
if [[ ! -e $venv ]]; then
    make_venv
    printf '%s\n' "$root" >"$venv/.root"
    printf '%s\n' "$build" >"$venv/.build"
fi
rm -f "$venv"/.stamp-*
: >"$unfinished"

uv_pin=$(grep '^uv==' locks/uv.lock)
if [[ $("$venv/bin/uv" --version 2>/dev/null) != "uv ${uv_pin#uv==}"* ]]; then
    say "installing $uv_pin"
    "$venv_python" -m pip install --quiet --disable-pip-version-check "$uv_pin"
fi

# uv does not read pip's settings, so they are passed as the environment variables that uv reads.
while IFS= read -r -d '' setting; do
    export "${setting?}"
done < <("$venv_python" scripts/pip_settings_for_uv.py)
export VIRTUAL_ENV=$root/$venv
# Compile bytecode once here, for processes that may not write it: torch and vLLM then import in half the time.
export UV_COMPILE_BYTECODE=1
uv_output=()
if [[ ! -t 2 ]]; then uv_output=(--quiet); fi

if [[ $build == cpu ]]; then
    install_cpu_torch
    ensure_libnuma
fi
install_locks
say "installing notegrade in editable mode"
"$venv/bin/uv" pip install "${uv_output[@]}" --no-deps --no-build-isolation -e .
verify

# Each set-up includes the smaller ones, but the trainer's on a GPU and verl's have other vLLMs than the service's.
if [[ ${locks[0]} == "locks/$build.lock" ]]; then digest_inputs "${locks[0]}" >"$venv/.stamp-runtime"; fi
if [[ $kind == train || $kind == dev ]]; then digest_inputs "${locks[@]:0:2}" >"$venv/.stamp-train"; fi
if [[ $kind == dev || $kind == verl ]]; then digest_inputs "${locks[@]}" >"$venv/.stamp-$kind"; fi
rm -f "$unfinished"
say "$venv is ready ($kind, $build)"
