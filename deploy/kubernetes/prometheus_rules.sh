#!/usr/bin/env bash
# Prints deploy/prometheus/rules as PrometheusRules: deploy/kubernetes/prometheus_rules.sh | kubectl apply -f -
# A script, since kustomize reads no files outside its folder and can't put one file's text into another's field.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../prometheus/rules"

shopt -s nullglob
files=(*.yml *.yaml)
((${#files[@]})) || { echo "prometheus_rules: no rules in $PWD" >&2; exit 1; }
for file in "${files[@]}"; do
    name=${file%.*}
    cat <<HEAD
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: notegrade-${name//_/-}
  namespace: notegrade
  labels:
    app.kubernetes.io/part-of: notegrade
spec:
HEAD
    sed -e '/^---$/d' -e 's/^/  /' "$file"
done
