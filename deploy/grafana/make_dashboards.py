#!/usr/bin/env python3
"""Makes the dashboards beside it out of what is said here: python deploy/grafana/make_dashboards.py

Grafana takes JSON of some thousand lines; what one wants to read and change of it is this. Both are in the repository, and a test
(tests/deploy/test_dashboards.py) holds that they are equal, and runs every query.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
# In queries, @ stands for the variables' selectors, and # for the routes that answer with scores.
SELECTED = 'job=~"$job", instance=~"$instance"'
SCORES = 'route=~"/score|(/v[12])?/rerank"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS, HEIGHT = 24, 8
# vLLM's Scheduler.make_stats, at the end of update_from_output.
AFTER_A_STEP = "As vLLM counts it, after each step. Grades take one step and are gone by then, so 0 is usual: what shows is what waits, and traces."
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph. `queries`: legend to PromQL; `unit` is Grafana's; `what` is told when one asks for it."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    what: str = ""
    stacked: bool = False
    is_heatmap: bool = False


Rows = dict[str, list[Panel]]


def quantiles(metric: str, selector: str, by: str = "") -> dict[str, str]:
    """p50 to p99.9 of a histogram, by a label where one is given."""
    legend = f"{{{{{by}}}}} " if by else ""
    labels = f"le, {by}" if by else "le"
    return {
        f"{legend}{name}": f"histogram_quantile({share}, "
        f"sum by ({labels}) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))"
        for name, share in QUANTILES.items()
    }


SCORING: Rows = {
    "Objectives": [
        Panel(
            "Errors: burn rate",
            {
                window: f'job:notegrade_errors:ratio_rate{window}{{job=~"$job"}} / 0.001'
                for window in ("5m", "1h", "6h")
            },
            what="1: the budget of 30 days (0.1 % of the requests answered 5xx) lasts just those. At 14.4 for an hour somebody is called.",
        ),
        Panel(
            "Latency: burn rate",
            {
                window: f'job:notegrade_slow:ratio_rate{window}{{job=~"$job"}} / 0.01'
                for window in ("5m", "1h", "6h")
            },
            what="1: the budget of 30 days (1 % of the answers over 1 s) lasts just those.",
        ),
        Panel("Replicas by readiness", {"{{reason}}": "sum by (reason) (notegrade_ready{@})"}, stacked=True),
    ],
    "Traffic": [
        Panel(
            "Requests by route",
            {"{{route}}": "sum by (route) (rate(notegrade_request_seconds_count{@}[$__rate_interval]))"},
            "reqps",
        ),
        Panel(
            "Requests for scores by status",
            {"{{status}}": "sum by (status) (rate(notegrade_request_seconds_count{@, #}[$__rate_interval]))"},
            "reqps",
            "499: the client left before its answer.",
        ),
        Panel(
            "Errors: share of the requests for scores",
            {
                "{{status}}": 'sum by (status) (rate(notegrade_request_seconds_count{@, #, status=~"5.."}[$__rate_interval])) '
                '/ ignoring (status) group_left sum (rate(notegrade_request_seconds_count{@, #, status!~"4.."}[$__rate_interval]))'
            },
            "percentunit",
            "500: the engine. 503: not ready, or every pair was shed. 504: no pair by the deadline.",
        ),
        Panel(
            "Pairs by outcome",
            {"{{outcome}}": "sum by (outcome) (rate(notegrade_pair_outcomes_total{@}[$__rate_interval]))"},
            stacked=True,
        ),
        Panel(
            "Pairs by source",
            {"{{source}}": "sum by (source) (rate(notegrade_pair_source_total{@}[$__rate_interval]))"},
            what="What is not from the engine cost it nothing.",
            stacked=True,
        ),
        Panel(
            "Pairs in a request",
            {
                "mean": "sum (rate(notegrade_pair_outcomes_total{@}[$__rate_interval])) "
                '/ sum (rate(notegrade_request_seconds_count{@, #, status!~"4.."}[$__rate_interval]))'
            },
        ),
    ],
    "Latency": [
        Panel("Answers", quantiles("notegrade_request_seconds", '@, #, status=~"2.."'), "s"),
        Panel(
            "Slow answers",
            {
                "over 1 s": '1 - sum (rate(notegrade_request_seconds_bucket{@, #, status=~"2..", le="1.0"}[$__rate_interval])) '
                '/ sum (rate(notegrade_request_seconds_count{@, #, status=~"2.."}[$__rate_interval]))'
            },
            "percentunit",
        ),
        *(
            Panel(
                f"Stages: {name}",
                {
                    "{{stage}}": f"histogram_quantile({share}, "
                    "sum by (le, stage) (rate(notegrade_stage_seconds_bucket{@}[$__rate_interval])))"
                },
                "s",
                "queue: until the engine began with the first of the pairs. A request from the cache alone has no other stage.",
            )
            for name, share in QUANTILES.items()
        ),
    ],
    "Load": [
        Panel(
            "Backlog",
            {"{{instance}}": "notegrade_backlog_tokens{@}"},
            what="Prompt tokens that are admitted and not answered yet. NOTEGRADE_MAX_BACKLOG_TOKENS is the most.",
        ),
        Panel(
            "Backlog, in time",
            {"{{instance}}": "notegrade_backlog_tokens{@} / (notegrade_service_rate_tokens{@} > 0)"},
            "s",
            "At 5 s for 10 minutes somebody is told. Nothing while no rate is measured.",
        ),
        Panel(
            "Service rate",
            {"{{instance}}": "notegrade_service_rate_tokens{@}"},
            what="Prompt tokens that the engine computes in a second when it has enough to do. 0: not measured yet.",
        ),
        Panel(
            "Pairs shed by reason",
            {"{{reason}}": "sum by (reason) (rate(notegrade_shed_total{@}[$__rate_interval]))"},
            what="deadline: its turn would have come too late. backlog: over the largest backlog.",
        ),
        Panel(
            "Engine: prompt tokens",
            {"{{kind}}": "sum by (kind) (rate(notegrade_prompt_tokens_total{@}[$__rate_interval]))"},
            what="reused: from the prefix cache.",
            stacked=True,
        ),
        Panel(
            "Engine: tokens computed for each second that requests spend there",
            {
                "{{instance}}": 'sum by (instance) (rate(notegrade_prompt_tokens_total{@,kind="computed"}[$__rate_interval]))'
                ' / (sum by (instance) (rate(notegrade_stage_seconds_sum{@,stage="engine"}[$__rate_interval])) > 0)'
            },
            what="It falls on one replica: that machine is slow, or its engine gets too little of it. On all, with the stage's latency:"
            " too much is asked at once.",
        ),
    ],
    "Caches": [
        Panel(
            "Pairs by tier and result",
            {
                "{{tier}} {{result}}": "sum by (tier, result) (rate(notegrade_cache_operations_total{@}[$__rate_interval]))"
            },
        ),
        Panel(
            "Hits, share of what was looked up",
            {
                "{{tier}}": 'sum by (tier) (rate(notegrade_cache_operations_total{@, result="hit"}[$__rate_interval])) '
                '/ sum by (tier) (rate(notegrade_cache_operations_total{@, result=~"hit|miss"}[$__rate_interval]))'
            },
            "percentunit",
        ),
        Panel("Redis is passed over (breaker)", {"{{instance}}": "notegrade_cache_breaker_open{@}"}),
    ],
    "Process": [
        Panel(
            "Tasks of the event loop",
            {"{{instance}}": "notegrade_tasks{@}"},
            what="Each open connection has some.",
        ),
        Panel("Connections of clients", {"{{instance}}": "notegrade_connections{@}"}),
        Panel(
            "Refused connections",
            {
                "{{problem}}": "sum by (problem) (rate(notegrade_refused_connections_total{@}[$__rate_interval]))"
            },
            what="A second. They reach no route, and are in no other figure.",
        ),
        Panel(
            "Open files, share of the most",
            {"{{instance}}": "process_open_fds{@} / process_max_fds{@}"},
            "percentunit",
            "Connections of clients and to Redis are most of them.",
        ),
        Panel(
            "Memory",
            {
                "{{instance}} service": "process_resident_memory_bytes{@}",
                "{{instance}} engine": "notegrade_engine_resident_bytes{@}",
            },
            "bytes",
            "Two processes. On a CPU they share some hundred MiB, which count for both.",
        ),
        Panel(
            "CPU",
            {
                "{{instance}} service": "rate(process_cpu_seconds_total{@}[$__rate_interval])",
                "{{instance}} engine": "rate(notegrade_engine_cpu_seconds_total{@}[$__rate_interval])",
            },
            what="In cores. With work waiting, an engine on a CPU takes all of its cores, or something holds it back.",
        ),
    ],
    "vLLM": [
        Panel(
            "Prompts in the engine",
            {
                "running": "sum (vllm:num_requests_running{@})",
                "waiting": "sum (vllm:num_requests_waiting{@})",
            },
            what=f"{AFTER_A_STEP} For how much there is to grade: Backlog.",
            stacked=True,
        ),
        Panel(
            "KV cache in use",
            {"{{instance}}": "vllm:kv_cache_usage_perc{@}"},
            "percentunit",
            what=AFTER_A_STEP,
        ),
        Panel(
            "Prefix cache: hits",
            {
                "share of the tokens": "sum (rate(vllm:prefix_cache_hits_total{@}[$__rate_interval])) "
                "/ sum (rate(vllm:prefix_cache_queries_total{@}[$__rate_interval]))"
            },
            "percentunit",
        ),
    ],
}

FINGERPRINTED = "* on (job, instance) group_left (fingerprint) notegrade_build_info{@}"
RELEVANCE: Rows = {
    "What is served": [
        Panel(
            "Replicas by checkpoint",
            {"{{version}} {{fingerprint}}": "count by (version, fingerprint) (notegrade_build_info{@})"},
            what="A change here is the first suspect for every other one on this page.",
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
            "Grade drift in a day",
            {"{{job}}": 'job:notegrade_grade:drift1d{job=~"$job"}'},
            "percentunit",
            "The share of the last hour's pairs that would need another grade for the mix of the same hour yesterday. Over 20 % somebody is told.",
        ),
        Panel(
            "Scores",
            {"{{le}}": "sum by (le) (increase(notegrade_score_bucket{@}[$__rate_interval]))"},
            is_heatmap=True,
        ),
    ],
    "Does the model understand": [
        Panel(
            "Label mass",
            {"{{le}}": "sum by (le) (increase(notegrade_label_mass_bucket{@}[$__rate_interval]))"},
            what="The probability of all grades together: near 0, the model did not understand what was asked.",
            is_heatmap=True,
        ),
        Panel(
            "Pairs with a label mass of 0.9 or less",
            {
                "share": 'sum (rate(notegrade_label_mass_bucket{@, le="0.9"}[$__rate_interval])) '
                "/ sum (rate(notegrade_label_mass_count{@}[$__rate_interval]))"
            },
            "percentunit",
            "Over 10 % somebody is told.",
        ),
        Panel(
            "Traces whose last grade is the served one",
            {
                "share": '(sum (rate(notegrade_explanation_agreement_total{@, agrees="true"}[$__rate_interval])) '
                "or 0 * sum (rate(notegrade_explanation_agreement_total{@}[$__rate_interval]))) "
                "/ sum (rate(notegrade_explanation_agreement_total{@}[$__rate_interval]))"
            },
            "percentunit",
            "Of those that could be parsed, while explanations are made.",
        ),
    ],
}

EXPLANATIONS: Rows = {
    "Mode": [
        Panel(
            "Replicas by mode",
            {"{{mode}}": "sum by (mode) (notegrade_explanation_mode{@})"},
            what="All have the same within 2 s; two modes at once for longer: a replica does not reach Redis.",
            stacked=True,
        ),
        Panel("Waiting for their turn", {"{{instance}}": "notegrade_explanation_queue{@}"}),
        Panel(
            "Turned off by the guard",
            {"{{instance}}": "increase(notegrade_explanation_guard_trips_total{@}[$__rate_interval])"},
            what="The replica whose guard did it. The mode's history has the figures.",
        ),
        Panel(
            "Scoring: p99",
            {
                "p99": "histogram_quantile(0.99, "
                'sum by (le) (rate(notegrade_request_seconds_bucket{@, #, status=~"2.."}[$__rate_interval])))'
            },
            "s",
            "Explanations give way: this must not rise with them. The guard turns them off when it does.",
        ),
    ],
    "What becomes of them": [
        Panel(
            "By outcome",
            {"{{outcome}}": "sum by (outcome) (rate(notegrade_explanations_total{@}[$__rate_interval]))"},
            stacked=True,
        ),
        Panel(
            "Dropped by reason",
            {"{{reason}}": "sum by (reason) (rate(notegrade_explanation_drops_total{@}[$__rate_interval]))"},
            what="scoring_busy: the guard's limits are breached.",
            stacked=True,
        ),
        Panel(
            "Agreement with the served grade",
            {
                "{{agrees}}": "sum by (agrees) (rate(notegrade_explanation_agreement_total{@}[$__rate_interval]))"
            },
            stacked=True,
        ),
    ],
    "What they take": [
        Panel("Time", quantiles("notegrade_explanation_seconds", "@", by="stage"), "s"),
        Panel(
            "Tokens written in a second",
            {"{{instance}}": "rate(notegrade_explanation_tokens_total{@}[$__rate_interval])"},
            what="NOTEGRADE_EXPLANATION_TOKENS_PER_S, which also counts prompts, is the most over time.",
        ),
    ],
}

MIRRORED = "rate(notegrade_shadow_grades_total{@}[$__rate_interval])"
# PromQL compares no label with another: these are the series of which both grades are the same.
SAME_GRADE = 'label_join(group by (served) (notegrade_shadow_grades_total{@}), "shadow", "", "served")'
SHADOW: Rows = {
    "What becomes of it": [
        Panel(
            "Mirrored requests by outcome",
            {"{{outcome}}": "sum by (outcome) (rate(notegrade_shadow_requests_total{@}[$__rate_interval]))"},
            what="failed: no answer, a refusal or another scale; the log tells which. dropped: NOTEGRADE_SHADOW_QUEUE were waiting.",
            stacked=True,
        ),
        Panel(
            "Mirrored requests, share of those for scores",
            {
                "share": "sum (rate(notegrade_shadow_requests_total{@}[$__rate_interval])) "
                '/ sum (rate(notegrade_request_seconds_count{@, #, status=~"2.."}[$__rate_interval]))'
            },
            "percentunit",
            "NOTEGRADE_SHADOW_RATE where all chosen replicas have a shadow.",
        ),
    ],
    "What it would change": [
        Panel(
            "Pairs that keep their grade",
            {
                "share": f"(sum (sum by (served, shadow) ({MIRRORED}) and on (served, shadow) {SAME_GRADE}) "
                f"or 0 * sum ({MIRRORED})) / sum ({MIRRORED})"
            },
            "percentunit",
            "Of all chosen replicas; `notegrade shadow` has it of one, with its interval.",
        ),
        Panel(
            "Pairs whose grade changes",
            {
                "{{served}} to {{shadow}}": f"(sum by (served, shadow) ({MIRRORED}) unless on (served, shadow) {SAME_GRADE}) "
                f"/ on () group_left () sum ({MIRRORED})"
            },
            "percentunit",
            "The grade that was served, and the shadow's, as a share of all mirrored pairs. More of them up than down: the candidate is milder.",
            stacked=True,
        ),
        Panel(
            "Distance of the scores",
            quantiles("notegrade_shadow_score_distance", "@"),
            what="Of a pair, without its sign: 0 is the same, 1 the whole scale.",
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
    """The dashboard as Grafana takes it."""
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
    """The dashboard's file."""
    return json.dumps(dashboard(name), indent=1) + "\n"


def _variables() -> list[dict[str, Any]]:
    asked = {"type": "query", "datasource": DATASOURCE, "refresh": 2, "sort": 1, "includeAll": True}
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {**asked, "name": "job", "query": "label_values(notegrade_build_info, job)", "multi": False},
        {
            **asked,
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
        # Three to a line, or as many as there are.
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
    common = {
        "title": panel.title,
        "description": panel.what,
        "datasource": DATASOURCE,
        "targets": targets,
    }
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
