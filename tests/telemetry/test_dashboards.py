"""The dashboard and the alerts use metrics that the code exports; the docs list all of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql
import pytest

from nexus_gateway.provider import Outcome
from nexus_gateway.routing.breaker import State
from nexus_gateway.telemetry.metrics.counting import OTHER, OUTCOMES, REASONS
from nexus_gateway.telemetry.metrics.definitions import FAMILIES, HISTOGRAM, Family
from nexus_gateway.telemetry.metrics.gauges import PARK_REASONS

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
DASHBOARD = json.loads((ROOT / "deploy/grafana/nexus-gateway.json").read_text())
ALERTS = (PROMETHEUS / "alerts.yml").read_text()
TARGET = {"job", "instance"}
VALUES = {
    "state": {state.value.lower() for state in State},
    "reason": set(PARK_REASONS),
    "status": {"2xx", "4xx", "5xx"},
    "outcome": OUTCOMES | {OTHER} | {outcome.value for outcome in Outcome},
    "job": {"nexus-gateway"},
}
# Labels with other values than in the other metrics.
OWN_VALUES = {
    "nexus_refused_requests_total": {
        "status": {"400", "401", "403", "404", "405", "408", "413", "415", "431", "500", "503"},
        "reason": REASONS | {OTHER},
    }
}


def samples() -> dict[str, set[str]]:
    """Return the labels of every sample in a scrape, including those that Prometheus adds."""
    labels_of: dict[str, set[str]] = {"up": set(TARGET)}
    for family in FAMILIES:
        labels = TARGET | set(family.labels)
        if family.kind == HISTOGRAM:
            labels_of[f"{family.name}_bucket"] = labels | {"le"}
            labels_of[f"{family.name}_sum"] = labels_of[f"{family.name}_count"] = labels
        else:
            labels_of[family.name] = labels
    return labels_of


SAMPLES = samples()


def problems(expression: str, shown: str = "") -> list[str]:
    """Return the mistakes in an expression and in the text that shows its result."""
    parsed = promql.read(expression)
    mistakes = [f"unknown: {name}" for name in parsed.names - SAMPLES.keys()]
    known = set().union(*(SAMPLES.get(name, set()) for name in parsed.names))
    for name, label, value in parsed.matchers:
        if label not in SAMPLES.get(name, set()):
            mistakes.append(f"{name} has no {label}")
        values = {**VALUES, **OWN_VALUES.get(name, {})}
        if label in values and not value.startswith("$"):
            mistakes += [
                f"{label} is never {v}" for v in value.split("|") if v not in values[label]
            ]
    labels = parsed.grouped | set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", shown))
    return mistakes + [f"no {label}" for label in labels - known]


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target


def rules() -> Iterator[tuple[str, str, str]]:
    for rule in re.split(r"(?m)^      - alert: ", ALERTS)[1:]:
        (expression,) = re.findall(r"(?m)^        expr: (.+)$", rule)
        yield rule.splitlines()[0], expression, rule


@pytest.mark.parametrize(("title", "target"), list(targets()), ids=lambda value: str(value)[:40])
def test_a_panel_uses_existing_metrics(title: str, target: dict[str, Any]) -> None:
    assert problems(target["expr"], target["legendFormat"]) == []
    assert target["datasource"]["uid"] == "${datasource}"


def test_the_variables_of_the_dashboard_use_existing_labels() -> None:
    chosen = {v["name"]: v for v in DASHBOARD["templating"]["list"]}
    assert chosen.pop("datasource")["query"] == "prometheus"
    assert set(chosen) == {"job", "instance", "provider_instance"}
    for name, variable in chosen.items():
        query = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert query is not None
        assert query[2] == name
        assert problems(query[1], f"{{{{{name}}}}}") == []


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & cells
        assert at["x"] + at["w"] <= 24
        taken |= cells
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    ("alert", "expression", "rule"), list(rules()), ids=lambda value: value[:30]
)
def test_an_alert_uses_existing_metrics_and_is_documented(
    alert: str, expression: str, rule: str
) -> None:
    assert problems(expression, rule) == []
    assert f"| `{alert}` |" in (ROOT / "docs/observability.md").read_text()


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("sum(rate(nexus_request_total[5m]))", ["unknown: nexus_request_total"]),
        ('nexus_workers{provider="groq"}', ["nexus_workers has no provider"]),
        ("sum by (state) (nexus_workers)", ["no state"]),
        ('nexus_instance_circuit_state{state=~"open|shut"} == 1', ["state is never shut"]),
        ('nexus_refused_requests_total{status="4xx"}', ["status is never 4xx"]),
        ('nexus_requests_total{status="401"}', ["status is never 401"]),
        ("nexus_overhead_seconds", ["unknown: nexus_overhead_seconds"]),
        ("1 - up / on (job) group_left (version) nexus_build_info offset 5m > 2e3", []),
    ],
)
def test_mistakes_are_reported(expression: str, wrong: list[str]) -> None:
    assert problems(expression) == wrong


def row_of(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    cell = f" {labels} " if labels else " "
    return f"| `{family.name}` | {family.kind} |{cell}| {family.help} |"


def test_exactly_the_existing_metrics_are_documented() -> None:
    docs = (ROOT / "docs/observability.md").read_text().splitlines()
    rows = [
        line for line in docs if re.match(r"\| `[a-z_]+` \| (counter|gauge|histogram) \|", line)
    ]
    assert sorted(rows) == sorted(map(row_of, FAMILIES))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on PATH")
@pytest.mark.parametrize(
    "command",
    [
        "check rules alerts.yml",
        "check config --syntax-only prometheus.yml",
        "test rules alerts_test.yml",
    ],
)
def test_promtool_agrees(command: str) -> None:
    run = ["promtool", *command.split()]
    done = subprocess.run(run, cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
