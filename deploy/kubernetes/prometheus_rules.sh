#!/usr/bin/env bash
# Prints deploy/prometheus/rules as PrometheusRules: deploy/kubernetes/prometheus_rules.sh | kubectl apply -f -
# It is a script because kustomize reads no files outside its folder and cannot put one file's text into another's field.
#
#   LABEL=VALUE ...          more labels, for a Prometheus that selects its rules by label: release=kube-prometheus-stack
#   NAMESPACE=notegrade      (an environment variable) the rules' namespace
set -euo pipefail

labels=
for label in "$@"; do
    if [[ $label != ?*=* ]]; then
        echo "prometheus_rules: '$label' is not of the form LABEL=VALUE" >&2
        exit 2
    fi
    labels+=$'\n'"    ${label%%=*}: \"${label#*=}\""
done

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
  namespace: ${NAMESPACE:-notegrade}
  labels:
    app.kubernetes.io/part-of: notegrade$labels
spec:
HEAD
    sed -e '/^---$/d' -e 's/^/  /' "$file"
done
