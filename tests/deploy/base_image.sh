#!/usr/bin/env bash
# base_image.sh NAME PYTHON: makes an image like python:3.x-slim where no registry can be reached. For tests only.
set -euo pipefail

name=$1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

container=$(buildah from scratch)
trap 'buildah rm "$container" >/dev/null' EXIT
"$root/scripts/bare_debian.sh" "$(buildah mount "$container")" "$2" ca-certificates
buildah commit --quiet "$container" "$name"
