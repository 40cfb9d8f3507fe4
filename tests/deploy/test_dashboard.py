"""The dashboard and the alerts, in a real Prometheus that scrapes the real service: no panel is empty."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prometheus_client import CollectorRegistry

from embedder.metrics.measures import Metrics
from tests.origin import Origin
from tests.pictures import data_url
from tests.server import ROOT, Server, free_port, until

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "embedder.json").read_text())
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")

needs_prometheus = pytest.mark.skipif(
    not PROMETHEUS or not PROMTOOL, reason="Prometheus is not installed: apt-get install prometheus"
)

Series = dict[str, Any]  # Any: JSON


@dataclass(frozen=True)
class Query:
    panel: str
    expr: str
    legend: str


QUERIES = [
    Query(f"{panel['title']}, {target['refId']}", target["expr"], target["legendFormat"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
]
VARIABLES: list[dict[str, Any]] = DASHBOARD["templating"]["list"]  # Any: JSON


def substituted(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
    return text.replace(old, new)


@dataclass(frozen=True)
class Prometheus:
    url: str

    def query(self, expr: str) -> list[Series]:
        return self._data("query", query=expr)["result"]  # type: ignore[no-any-return]

    def label_values(self, selector: str, label: str) -> list[str]:
        return self._data(f"label/{label}/values", **{"match[]": selector})  # type: ignore[no-any-return]

    def rules(self) -> list[Series]:
        return [rule for group in self._data("rules")["groups"] for rule in group["rules"]]

    def _data(self, path: str, **parameters: str) -> Any:  # Any: JSON
        answer = requests.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10)
        assert answer.ok, answer.text
        return answer.json()["data"]


def numbers(result: list[Series]) -> list[Series]:
    return [series for series in result if series["value"][1] != "NaN"]


@pytest.fixture(scope="module")
def busy_server(
    tmp_path_factory: pytest.TempPathFactory, store: Path, origin: Origin, photo: bytes
) -> Iterator[Server]:
    """A service that is asked for good and bad images as long as this lasts."""
    origin.serve("/good.jpg", photo)
    origin.serve("/cut.jpg", photo[: len(photo) // 2])
    environ = {
        "BENTOML_HOME": str(store),
        "EMBEDDER_WORKERS": "2",
        "EMBEDDER_ALLOWED_NETWORKS": "127.0.0.0/8",
        "EMBEDDER_ALLOWED_PORTS": str(origin.port),
        "EMBEDDER_CACHE_ENTRIES": "1000",
    }
    good, bad = origin.url("/good.jpg"), [origin.url("/cut.jpg"), origin.url("/none.jpg"), "http://[::1]/"]

    def never_seen(number: int) -> str:
        commented = photo[:2] + b"\xff\xfe\x00\x0a%08d" % number + photo[2:]
        return data_url(commented)

    def ask_until(end: threading.Event, server: Server) -> None:
        number = 0
        while not end.wait(0.1):
            number += 1
            server.post("/embed", {"url": good})
            server.post("/embed", {"url": never_seen(number)})
            server.post("/embed", {"url": bad[number % len(bad)]})
            server.post("/embed", {"no": "url"})
            server.post("/embed_batch", {"urls": [good, good, never_seen(-number), *bad]})
            server.get("/no-such-route")

    with Server(tmp_path_factory.mktemp("busy") / "log", environ) as server:
        end = threading.Event()
        client = threading.Thread(target=ask_until, args=(end, server))
        client.start()
        try:
            yield server
        finally:
            end.set()
            client.join()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, busy_server: Server) -> Iterator[Prometheus]:
    """Prometheus with the repository's configuration, in a hurry."""
    folder = tmp_path_factory.mktemp("prometheus")
    configuration = (DEPLOY / "prometheus.yml").read_text()
    configuration = substituted(configuration, "embedder:8000", f"127.0.0.1:{busy_server.port}")
    configuration = substituted(configuration, "scrape_interval: 15s", "scrape_interval: 500ms")
    configuration = substituted(configuration, "evaluation_interval: 15s", "evaluation_interval: 1s")
    (folder / "prometheus.yml").write_text(configuration)
    shutil.copy(DEPLOY / "alerts.yml", folder)
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(str(PROMETHEUS), f"--config.file={folder / 'prometheus.yml'}"),
                *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: _is_ready(process, url, folder / "log"))
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait(20)


def _is_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return requests.get(f"{url}/-/ready", timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="module")
def variables(prometheus: Prometheus) -> Mapping[str, str]:
    """What Grafana puts in the place of the dashboard's variables, by what Prometheus knows."""
    values = {"$__rate_interval": "10s"}
    for variable in VARIABLES:
        if variable["type"] == "datasource":
            continue
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert found is not None
        selector, label = filled_in(found[1], values), found[2]
        until(lambda: prometheus.label_values(selector, label))  # noqa: B023 - called before the loop goes on
        (value,) = prometheus.label_values(selector, label)
        values[f"${variable['name']}"] = variable["allValue"] if variable["includeAll"] else value
    return values


def filled_in(expr: str, variables: Mapping[str, str]) -> str:
    """`expr` with the values of its variables. Grafana does that with no more ceremony."""
    for name, value in variables.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


@needs_prometheus
def test_every_query_of_every_panel_gives_numbers_with_the_labels_of_its_legend(
    prometheus: Prometheus, variables: Mapping[str, str]
) -> None:
    empty = list(QUERIES)

    def all_have_numbers() -> bool:
        empty[:] = [q for q in empty if not numbers(prometheus.query(filled_in(q.expr, variables)))]
        return not empty

    with suppress(AssertionError):  # the panels say more
        until(all_have_numbers, 60)
    assert [(query.panel, query.expr) for query in empty] == []
    for query in QUERIES:
        labels = set(re.findall(r"{{(\w+)}}", query.legend))
        for series in prometheus.query(filled_in(query.expr, variables)):
            assert labels <= series["metric"].keys(), query.panel
    # A panel of a metric that does not exist would be seen.
    for nothing in (
        "embedder_no_such_metric",
        "sum(rate(embedder_no_such_metric[10s])) / sum(up)",
        "vector(0) / 0",
    ):
        assert not numbers(prometheus.query(nothing))


@needs_prometheus
def test_the_stages_are_those_of_an_image(prometheus: Prometheus, variables: Mapping[str, str]) -> None:
    for query in QUERIES:
        if query.panel.startswith("Stages: "):
            expr = filled_in(query.expr, variables)
            stages = {"fetch", "decode_queue", "decode", "queue", "encode"}
            until(partial(_has_stages, prometheus, expr, stages))


def _has_stages(prometheus: Prometheus, expr: str, stages: set[str]) -> bool:
    return {series["metric"]["stage"] for series in prometheus.query(expr)} == stages


@needs_prometheus
def test_every_alert_is_evaluated_and_none_is_raised_by_this(prometheus: Prometheus) -> None:
    names = {rule["alert"] for rule in alerts()}
    until(lambda: {rule["name"] for rule in prometheus.rules() if rule["health"] == "ok"} == names)
    assert [rule["name"] for rule in prometheus.rules() if rule["state"] == "firing"] == []


@needs_prometheus
def test_promtool_finds_nothing_in_the_files_and_in_the_services_metrics(busy_server: Server) -> None:
    ours = "".join(
        line
        for line in busy_server.get("/metrics").text.splitlines(keepends=True)
        if "embedder_" in line  # BentoML's own names are not ours to mend
    )
    for check in (
        "check config deploy/prometheus.yml",
        "check rules deploy/alerts.yml",
        "test rules tests/deploy/alerts.yml",
        "check metrics",
    ):
        command = [str(PROMTOOL), *check.split()]
        done = subprocess.run(command, cwd=ROOT, input=ours, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "metrics" not in check or done.stdout + done.stderr == ""


def alerts() -> list[dict[str, Any]]:  # Any: YAML
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_alert_is_tested_raised_and_quiet() -> None:
    cases = [
        case
        for test in yaml.safe_load((ROOT / "tests" / "deploy" / "alerts.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in alerts()}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


def test_the_dashboard_shows_all_that_the_service_counts() -> None:
    shown = " ".join(query.expr for query in QUERIES)
    ours = CollectorRegistry()
    Metrics(ours)
    for metric in (
        "bentoml_service_request_total",
        "bentoml_service_request_duration_seconds",
        "bentoml_service_adaptive_batch_size",
        *(family.name for family in ours.collect()),
    ):
        assert re.search(rf"\b{metric}", shown), metric


def test_panels_have_numbers_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_grafana_is_told_where_prometheus_and_the_dashboard_are() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (choice,) = [variable for variable in VARIABLES if variable["type"] == "datasource"]
    assert choice["current"]["value"] == source["uid"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if "targets" in panel} == {
        f"${{{choice['name']}}}"
    }
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "embedder.yaml").read_text())["providers"]
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert services[host]["ports"][0].endswith(f":{port}")
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
