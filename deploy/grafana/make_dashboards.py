#!/usr/bin/env python3
"""Generates Grafana's dashboards from the definitions in this file: python deploy/grafana/make_dashboards.py

Grafana's JSON has thousands of lines; this file holds the parts that people read and change. Both are in the repository.
tests/deploy/test_dashboards.py checks that they match, and runs every query.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
# In queries, @ stands for the selectors of the dashboard's variables, and # for the scoring routes.
SELECTED = 'job=~"$job", instance=~"$instance"'
SCORES = 'route=~"(/v1)?/score|(/v[12])?/rerank"'
ANSWERED = '@, #, status=~"2.."'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS, HEIGHT = 24, 8
# vLLM's Scheduler.make_stats, at the end of update_from_output.
AFTER_A_STEP = "vLLM counts after each step. A grade takes one step and is done by then, so 0 is normal: the figure shows waiting prompts and traces."
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True, slots=True)
class Panel:
    """Describes a graph: `queries` maps legends to PromQL, `unit` is one of Grafana's, `what` is the description."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    what: str = ""
    stacked: bool = False
    is_heatmap: bool = False


Rows = dict[str, list[Panel]]


def rate(series: str) -> str:
    return f"rate({series}[$__rate_interval])"


def rates(metric: str, *labels: str, selector: str = "@") -> dict[str, str]:
    """Build the query for a counter's rate, summed by these labels."""
    legend = " ".join(f"{{{{{label}}}}}" for label in labels)
    return {legend: f"sum by ({', '.join(labels)}) ({rate(f'{metric}{{{selector}}}')})"}


def ratio(above: str, below: str) -> str:
    """Build the query for a share: the sum of one rate divided by the sum of another."""
    return f"sum ({rate(above)}) / sum ({rate(below)})"


def share_of_true(metric: str, label: str) -> str:
    """Build the query for the share of a counter's events with the label `true`: 0 before the first of them."""
    true, all_ = (f"sum ({rate(f'{metric}{{{selector}}}')})" for selector in (f'@, {label}="true"', "@"))
    return f"({true} or 0 * {all_}) / {all_}"


def by_instance(expression: str) -> dict[str, str]:
    return {"{{instance}}": expression}


def quantile(share: float, metric: str, selector: str = "@", *, by: str = "") -> str:
    """Build the query for a histogram's quantile, by the label `by` if given."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) ({rate(f'{metric}_bucket{{{selector}}}')}))"


def quantiles(metric: str, selector: str = "@", *, by: str = "") -> dict[str, str]:
    """Build the queries for p50 to p99.9 of a histogram."""
    legend = f"{{{{{by}}}}} " if by else ""
    return {f"{legend}{name}": quantile(share, metric, selector, by=by) for name, share in QUANTILES.items()}


def burn_rates(objective: str, budget: float) -> dict[str, str]:
    """Build the queries for how fast the error budget of an objective is used, in three windows."""
    windows = ("5m", "1h", "6h")
    return {each: f'job:notegrade_{objective}:ratio_rate{each}{{job=~"$job"}} / {budget}' for each in windows}


SCORING: Rows = {
    "Objectives": [
        Panel(
            "Errors: burn rate",
            burn_rates("errors", 0.001),
            what="At 1, the error budget of 30 days (0.1 % of the requests answered 5xx) lasts exactly 30 days. 14.4 for an hour pages somebody.",
        ),
        Panel(
            "Latency: burn rate",
            burn_rates("slow", 0.01),
            what="At 1, the error budget of 30 days (1 % of the answers over 1 s) lasts exactly 30 days.",
        ),
        Panel("Replicas by readiness", {"{{reason}}": "sum by (reason) (notegrade_ready{@})"}, stacked=True),
    ],
    "Traffic": [
        Panel("Requests by route", rates("notegrade_request_seconds_count", "route"), "reqps"),
        Panel(
            "Scoring requests by status",
            rates("notegrade_request_seconds_count", "status", selector="@, #"),
            "reqps",
            "499: the client closed the connection before the answer.",
        ),
        Panel(
            "Errors: share of the scoring requests",
            {
                "{{status}}": 'sum by (status) (rate(notegrade_request_seconds_count{@, #, status=~"5.."}[$__rate_interval])) '
                '/ ignoring (status) group_left sum (rate(notegrade_request_seconds_count{@, #, status!~"4.."}[$__rate_interval]))'
            },
            "percentunit",
            "500: an engine error. 503: not ready, or pairs were shed. 504: pairs were not scored by the deadline.",
        ),
        Panel("Pairs by outcome", rates("notegrade_pair_outcomes_total", "outcome"), stacked=True),
        Panel(
            "Pairs by source",
            rates("notegrade_pair_source_total", "source"),
            what="Only pairs from the source `engine` cost engine time.",
            stacked=True,
        ),
        Panel(
            "Pairs per request",
            {
                "mean": ratio(
                    "notegrade_pair_outcomes_total{@}", 'notegrade_request_seconds_count{@, #, status!~"4.."}'
                )
            },
        ),
    ],
    "Latency": [
        Panel("Latency of answers", quantiles("notegrade_request_seconds", ANSWERED), "s"),
        Panel(
            "Slow answers",
            {
                "over 1 s": "1 - "
                + ratio(
                    f'notegrade_request_seconds_bucket{{{ANSWERED}, le="1.0"}}',
                    f"notegrade_request_seconds_count{{{ANSWERED}}}",
                )
            },
            "percentunit",
        ),
        *(
            Panel(
                f"Stages: {name}",
                {"{{stage}}": quantile(share, "notegrade_stage_seconds", by="stage")},
                "s",
                "queue: until the engine started the first of the pairs. A request served from the cache has only the stage cache.",
            )
            for name, share in QUANTILES.items()
        ),
    ],
    "Load": [
        Panel(
            "Backlog",
            by_instance("notegrade_backlog_tokens{@}"),
            what="Prompt tokens admitted and not yet answered. The limit is NOTEGRADE_MAX_BACKLOG_TOKENS.",
        ),
        Panel(
            "Backlog in seconds",
            by_instance("notegrade_backlog_tokens{@} / (notegrade_service_rate_tokens{@} > 0)"),
            "s",
            "An alert fires after 10 minutes over 5 s. Empty until a rate is measured.",
        ),
        Panel(
            "Service rate",
            by_instance("notegrade_service_rate_tokens{@}"),
            what="Prompt tokens that the engine computes per second under load. 0: not measured yet.",
        ),
        Panel(
            "Pairs shed by reason",
            rates("notegrade_shed_total", "reason"),
            what="deadline: the pair would have been scored too late. backlog: the backlog is at its limit.",
        ),
        Panel(
            "Engine: prompt tokens",
            rates("notegrade_prompt_tokens_total", "kind"),
            what="reused: taken from the prefix cache.",
            stacked=True,
        ),
        Panel(
            "Engine: tokens computed per second that requests spend in it",
            {
                "{{instance}}": 'sum by (instance) (rate(notegrade_prompt_tokens_total{@,kind="computed"}[$__rate_interval]))'
                ' / (sum by (instance) (rate(notegrade_stage_seconds_sum{@,stage="engine"}[$__rate_interval])) > 0)'
            },
            what="If it falls on one replica, that machine is slow or its engine gets too little CPU. If it falls on all while the engine stage"
            " gets slower, there are too many requests at once.",
        ),
    ],
    "Caches": [
        Panel("Pairs by tier and result", rates("notegrade_cache_operations_total", "tier", "result")),
        Panel(
            "Hits: share of the pairs looked up",
            {
                "{{tier}}": 'sum by (tier) (rate(notegrade_cache_operations_total{@, result="hit"}[$__rate_interval])) '
                '/ sum by (tier) (rate(notegrade_cache_operations_total{@, result=~"hit|miss"}[$__rate_interval]))'
            },
            "percentunit",
        ),
        Panel("Breaker open (Redis not used)", by_instance("notegrade_cache_breaker_open{@}")),
    ],
    "Note vectors": [
        Panel("Notes looked up by result", rates("notegrade_vector_lookups_total", "result")),
        Panel("Notes to encode by outcome", rates("notegrade_encoded_notes_total", "outcome")),
        Panel("Encoding: notes that wait", by_instance("notegrade_encoding_backlog{@}")),
        Panel(
            "Encoding: time of the oldest of them", by_instance("notegrade_encoding_oldest_seconds{@}"), "s"
        ),
        Panel(
            "Encoding: share of the time",
            by_instance(rate("notegrade_encoding_seconds_sum{@}")),
            "percentunit",
        ),
    ],
    "Process": [
        Panel(
            "Tasks of the event loop",
            by_instance("notegrade_tasks{@}"),
            what="Each open connection has a few.",
        ),
        Panel("Client connections", by_instance("notegrade_connections{@}")),
        Panel(
            "Refused connections",
            rates("notegrade_refused_connections_total", "problem"),
            what="Per second. They reach no route and are not in any other graph.",
        ),
        Panel(
            "Open files: share of the limit",
            by_instance("process_open_fds{@} / process_max_fds{@}"),
            "percentunit",
            "Most are client connections and connections to Redis.",
        ),
        Panel(
            "Memory",
            {
                "{{instance}} service": "process_resident_memory_bytes{@}",
                "{{instance}} engine": "notegrade_engine_resident_bytes{@}",
            },
            "bytes",
            "Two processes. On a CPU they share some hundred MiB, which are counted for both.",
        ),
        Panel(
            "CPU",
            {
                "{{instance}} service": "rate(process_cpu_seconds_total{@}[$__rate_interval])",
                "{{instance}} engine": "rate(notegrade_engine_cpu_seconds_total{@}[$__rate_interval])",
            },
            what="In cores. While work waits, an engine on a CPU should use all its cores; if it does not, something slows it down.",
        ),
    ],
    "vLLM": [
        Panel(
            "Prompts in the engine",
            {
                "running": "sum (vllm:num_requests_running{@})",
                "waiting": "sum (vllm:num_requests_waiting{@})",
            },
            what=f"{AFTER_A_STEP} Backlog shows the amount of work.",
            stacked=True,
        ),
        Panel(
            "KV cache in use", by_instance("vllm:kv_cache_usage_perc{@}"), "percentunit", what=AFTER_A_STEP
        ),
        Panel(
            "Prefix cache: hits",
            {
                "share of the tokens": ratio(
                    "vllm:prefix_cache_hits_total{@}", "vllm:prefix_cache_queries_total{@}"
                )
            },
            "percentunit",
        ),
    ],
}

FINGERPRINTED = "* on (job, instance) group_left (fingerprint) notegrade_build_info{@}"
RELEVANCE: Rows = {
    "Checkpoints": [
        Panel(
            "Replicas by checkpoint",
            {
                "{{version}} {{fingerprint}} {{grading_version}}": "count by (version, fingerprint, grading_version) (notegrade_build_info{@})"
            },
            what="If anything else on this page changed, first check whether the checkpoint did.",
            stacked=True,
        ),
        Panel(
            "Mean score by checkpoint",
            {
                "{{fingerprint}}": f"sum by (fingerprint) (rate(notegrade_score_sum{{@}}[$__rate_interval]) {FINGERPRINTED}) "
                f"/ sum by (fingerprint) (rate(notegrade_score_count{{@}}[$__rate_interval]) {FINGERPRINTED})"
            },
        ),
        Panel(
            "Grade mix by checkpoint",
            {
                "{{fingerprint}} {{grade}}": f"sum by (fingerprint, grade) (rate(notegrade_grade_total{{@}}[$__rate_interval]) {FINGERPRINTED}) "
                "/ on (fingerprint) group_left "
                f"sum by (fingerprint) (rate(notegrade_grade_total{{@}}[$__rate_interval]) {FINGERPRINTED})"
            },
            "percentunit",
        ),
    ],
    "Grades and scores": [
        Panel(
            "Grade mix",
            {
                "{{grade}}": "sum by (grade) (rate(notegrade_grade_total{@}[$__rate_interval])) "
                "/ ignoring (grade) group_left sum (rate(notegrade_grade_total{@}[$__rate_interval]))"
            },
            "percentunit",
            stacked=True,
        ),
        Panel(
            "Grade drift in one day",
            {"{{job}}": 'job:notegrade_grade:drift1d{job=~"$job"}'},
            "percentunit",
            "The share of the last hour's pairs that would need another grade to give the mix of the same hour yesterday. An alert fires over 20 %.",
        ),
        Panel(
            "Scores",
            {"{{le}}": "sum by (le) (increase(notegrade_score_bucket{@}[$__rate_interval]))"},
            is_heatmap=True,
        ),
    ],
    "Label mass and agreement": [
        Panel(
            "Label mass",
            {"{{le}}": "sum by (le) (increase(notegrade_label_mass_bucket{@}[$__rate_interval]))"},
            what="The probability of all grades together. Near 0 means the model is not answering with a grade.",
            is_heatmap=True,
        ),
        Panel(
            "Pairs with a label mass of 0.9 or less",
            {"share": ratio('notegrade_label_mass_bucket{@, le="0.9"}', "notegrade_label_mass_count{@}")},
            "percentunit",
            "An alert fires over 10 %.",
        ),
        Panel(
            "Traces whose last grade equals the served grade",
            {"share": share_of_true("notegrade_explanation_agreement_total", "agrees")},
            "percentunit",
            "Share of the well-formed traces; empty while no explanations are made.",
        ),
        Panel(
            "Traces whose citations are all true",
            {"share": share_of_true("notegrade_explanation_grounded_total", "grounded")},
            "percentunit",
            "Share of the well-formed traces, those without citations included; empty while no explanations are made.",
        ),
    ],
}

EXPLANATIONS: Rows = {
    "Mode": [
        Panel(
            "Replicas by mode",
            {"{{mode}}": "sum by (mode) (notegrade_explanation_mode{@})"},
            what="All replicas follow a flip within 2 s. If they differ for longer, a replica does not reach Redis.",
            stacked=True,
        ),
        Panel("Explanations waiting", by_instance("notegrade_explanation_queue{@}")),
        Panel(
            "Turned off by the guard",
            by_instance("increase(notegrade_explanation_guard_trips_total{@}[$__rate_interval])"),
            what="Counted by the replica whose guard turned the mode off. The mode's history has the figures.",
        ),
        Panel(
            "Scoring: p99",
            {"p99": quantile(0.99, "notegrade_request_seconds", ANSWERED)},
            "s",
            "Explanations give way to scores, so this must not rise with them. If it does, the guard turns the mode off.",
        ),
    ],
    "Outcomes": [
        Panel("Explanations by outcome", rates("notegrade_explanations_total", "outcome"), stacked=True),
        Panel(
            "Dropped explanations by reason",
            rates("notegrade_explanation_drops_total", "reason"),
            what="scoring_busy: scoring is over the guard's limits.",
            stacked=True,
        ),
        Panel(
            "Agreement with the served grade",
            rates("notegrade_explanation_agreement_total", "agrees"),
            stacked=True,
        ),
        Panel(
            "Truth of the citations",
            rates("notegrade_explanation_grounded_total", "grounded"),
            what="false: a trace cites something that is not in the query or the note. none: it cites nothing, so it can't be checked.",
            stacked=True,
        ),
    ],
    "Cost": [
        Panel("Time by stage", quantiles("notegrade_explanation_seconds", by="stage"), "s"),
        Panel(
            "Trace tokens per second",
            by_instance("rate(notegrade_explanation_tokens_total{@}[$__rate_interval])"),
            what="The limit on average is NOTEGRADE_EXPLANATION_TOKENS_PER_S, which counts prompt tokens too.",
        ),
    ],
}

MIRRORED = "rate(notegrade_shadow_grades_total{@}[$__rate_interval])"
# The series whose two grades are equal: PromQL cannot compare two labels of a series.
SAME_GRADE = 'label_join(group by (served) (notegrade_shadow_grades_total{@}), "shadow", "", "served")'
SHADOW: Rows = {
    "Outcomes": [
        Panel(
            "Mirrored requests by outcome",
            rates("notegrade_shadow_requests_total", "outcome"),
            what="failed: no answer, an error or another scale; the log says which. dropped: the queue (NOTEGRADE_SHADOW_QUEUE) was full.",
            stacked=True,
        ),
        Panel(
            "Mirrored requests: share of the scoring requests",
            {
                "share": ratio(
                    "notegrade_shadow_requests_total{@}",
                    'notegrade_request_seconds_count{@, #, status=~"2.."}',
                )
            },
            "percentunit",
            "Equals NOTEGRADE_SHADOW_RATE if all selected replicas have a shadow.",
        ),
    ],
    "Differences": [
        Panel(
            "Pairs that keep their grade",
            {
                "share": f"(sum (sum by (served, shadow) ({MIRRORED}) and on (served, shadow) {SAME_GRADE}) "
                f"or 0 * sum ({MIRRORED})) / sum ({MIRRORED})"
            },
            "percentunit",
            "Over all selected replicas. `notegrade shadow` shows one replica, with a confidence interval.",
        ),
        Panel(
            "Pairs whose grade changes",
            {
                "{{served}} to {{shadow}}": f"(sum by (served, shadow) ({MIRRORED}) unless on (served, shadow) {SAME_GRADE}) "
                f"/ on () group_left () sum ({MIRRORED})"
            },
            "percentunit",
            "From the served grade to the shadow's, as a share of all mirrored pairs. If more go up than down, the candidate grades more leniently.",
            stacked=True,
        ),
        Panel(
            "Absolute difference of the scores",
            quantiles("notegrade_shadow_score_distance"),
            what="Per pair. 0 means equal, 1 the whole scale.",
        ),
    ],
}

DASHBOARDS: dict[str, tuple[str, Rows]] = {
    "scoring": ("Notegrade: scoring", SCORING),
    "relevance": ("Notegrade: relevance health", RELEVANCE),
    "explanations": ("Notegrade: explanations", EXPLANATIONS),
    "shadow": ("Notegrade: shadow", SHADOW),
}


def dashboard(name: str) -> dict[str, Any]:
    """Build the dashboard in Grafana's JSON model."""
    title, rows = DASHBOARDS[name]
    return {
        "uid": f"notegrade-{name}",
        "title": title,
        "tags": ["notegrade"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "graphTooltip": 1,
        "links": [{"type": "dashboards", "title": "Notegrade", "tags": ["notegrade"], "asDropdown": False}],
        "templating": {"list": _variables()},
        "panels": [{**panel, "id": number} for number, panel in enumerate(_panels(rows), start=1)],
    }


def text(name: str) -> str:
    """Format the dashboard as its file's text."""
    return json.dumps(dashboard(name), indent=1) + "\n"


def _variables() -> list[dict[str, Any]]:
    query = {"type": "query", "datasource": DATASOURCE, "refresh": 2, "sort": 1, "includeAll": True}
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {**query, "name": "job", "query": "label_values(notegrade_build_info, job)", "multi": False},
        {
            **query,
            "name": "instance",
            "query": 'label_values(notegrade_build_info{job=~"$job"}, instance)',
            "multi": True,
        },
    ]


def _panels(rows: Rows) -> Iterator[dict[str, Any]]:
    top = 0
    for title, panels in rows.items():
        yield {
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
        }
        top += 1
        # Up to three panels side by side.
        width = COLUMNS // min(3, len(panels))
        for number, panel in enumerate(panels):
            line, column = divmod(number, COLUMNS // width)
            place = {"x": column * width, "y": top + line * HEIGHT, "w": width, "h": HEIGHT}
            yield {**_graph(panel), "gridPos": place}
        top += HEIGHT * -(-len(panels) // (COLUMNS // width))


def _graph(panel: Panel) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": DATASOURCE,
            "expr": query.replace("@", SELECTED).replace("#", SCORES),
            "legendFormat": legend,
            **({"format": "heatmap"} if panel.is_heatmap else {}),
        }
        for number, (legend, query) in enumerate(panel.queries.items())
    ]
    common = {"title": panel.title, "description": panel.what, "datasource": DATASOURCE, "targets": targets}
    if panel.is_heatmap:
        axis = {"yAxis": {"unit": panel.unit}, "cellGap": 1, "color": {"mode": "scheme", "scheme": "Blues"}}
        return {**common, "type": "heatmap", "options": {"calculate": False, **axis}}
    drawn = {"fillOpacity": 20, "stacking": {"mode": "normal"}} if panel.stacked else {"fillOpacity": 0}
    return {
        **common,
        "type": "timeseries",
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": drawn}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


if __name__ == "__main__":
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(text(name), encoding="utf-8")
