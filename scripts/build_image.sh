#!/usr/bin/env bash
# Builds the serving image with the first of docker, podman and buildah that works; arguments go to its `build`. With
# `--file model_export/Dockerfile` it builds the trainer's image.
#
#   IMAGE=notegrade          its name
#   TAG=0.1.0                its tag; default: the version, with -gpu appended for a GPU
#   TARGET=cpu               or gpu; the trainer's also verl
#   BASE=python:3.12-slim    another base, see Dockerfile
#   CHECKPOINT=FOLDER        copies a checkpoint into the image
#   BUILDER=buildah          the builder to use
#
# pip's own settings (index, find-links, certificate) apply to the build, and are not stored in the image.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

die() {
    printf 'image: %s\n' "$*" >&2
    exit 1
}

find_builder() {
    if [[ -n ${BUILDER:-} ]]; then
        printf '%s\n' "$BUILDER"
    elif docker info &>/dev/null; then
        echo docker
    elif command -v podman >/dev/null; then
        echo podman
    elif command -v buildah >/dev/null; then
        echo buildah
    else
        die "no image builder found: start Docker, or install podman or buildah"
    fi
}

builder=$(find_builder)
target=${TARGET:-cpu}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
tag=$version
[[ $target == cpu ]] || tag+=-$target
name=${IMAGE:-notegrade}:${TAG:-$tag}
options=(--target "$target" --tag "$name" --build-arg "VERSION=$version")

if [[ -n ${BASE:-} ]]; then options+=(--build-arg "BASE=$BASE"); fi
if [[ -n ${CHECKPOINT:-} ]]; then
    [[ -e $CHECKPOINT/manifest.json ]] || die "CHECKPOINT is '$CHECKPOINT', which has no manifest.json"
    options+=(--build-context "checkpoint=$(realpath "$CHECKPOINT")")
fi
if revision=$(git describe --always --dirty --abbrev=40 --match= 2>/dev/null); then
    options+=(--build-arg "REVISION=$revision" --build-arg "CREATED=$(TZ=UTC git log -1 --date=iso-strict-local --format=%cd)")
fi
# The OCI format has no health check.
[[ $builder == docker ]] || options+=(--format docker)

# --- pip's settings ----------------------------------------------------------------------------------------------

secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT
python=.venv/bin/python
[[ -x $python ]] || python=python3
local_files=$("$python" scripts/pip_settings_for_a_root.py "$secrets/pip.conf")
options+=(--secret "id=pip.conf,src=$secrets/pip.conf")
while IFS='=' read -r what path; do
    case $what in
        ca.crt) options+=(--secret "id=ca.crt,src=$path") ;;
        wheels) options+=(--build-context "wheels=$path") ;;
    esac
done <<<"$local_files"

printf 'image: building %s with %s\n' "$name" "$builder" >&2
"$builder" build "${options[@]}" "$@" .
printf 'image: %s\n' "$name" >&2
