#!/usr/bin/env bash
# Fails if a given file is larger than 10 MB, and names it: weights and data belong in checkpoints/ and runs/, outside git.
set -euo pipefail

limit=10000000
failed=0
for file in "$@"; do
    [[ -f $file ]] || continue
    bytes=$(stat --format=%s -- "$file")
    if ((bytes > limit)); then
        printf '%s: %d bytes, limit %d\n' "$file" "$bytes" "$limit" >&2
        failed=1
    fi
done
exit "$failed"
