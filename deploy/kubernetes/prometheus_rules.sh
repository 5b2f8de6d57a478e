#!/usr/bin/env bash
# Prints deploy/prometheus/rules as PrometheusRules: deploy/kubernetes/prometheus_rules.sh | kubectl apply -f -
# A script, since kustomize reads no files outside its folder and can't put one file's text into another's field.
#
#   LABEL=VALUE ...          further labels, by which a Prometheus may choose its rules: release=kube-prometheus-stack
#   NAMESPACE=notegrade      (a variable) where the rules go
set -euo pipefail

labels=
for label in "$@"; do
    if [[ $label != ?*=* ]]; then
        echo "prometheus_rules: '$label' is no LABEL=VALUE" >&2
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
