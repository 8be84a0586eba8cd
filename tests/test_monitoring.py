"""The dashboard and the alert rules: every series in their queries is exported by a broker.

Invariant: a simple parser that knows only PromQL selectors reads the queries. It reports unknown names, so a misspelt
name in a query fails.
"""

import json
import re
from pathlib import Path

import pytest
from certificates import Authority
from raw_client import RawClient
from watched_broker import WatchedBroker

from blipmq.wire import frames as wire

ROOT = Path(__file__).parent.parent
MONITORING = ROOT / "packaging/monitoring"
DASHBOARD = MONITORING / "blipmq-dashboard.json"
ALERTS = MONITORING / "blipmq-alerts.yml"

WORDS = {"and", "or", "unless", "bool", "offset"}
MADE_BY_PROMETHEUS = {"up"}
ADDED_BY_PROMETHEUS = {"instance", "job"}


def selectors(query):
    """The series of a query: pairs of a metric name and its label matchers (label, operator, value)."""
    query = re.sub(r"\[[^\]]*\]", "", query)
    query = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", query)
    for match in re.finditer(r'([a-zA-Z_:][\w:]*)\s*(\{(?:[^}"]|"[^"]*")*\})?(\s*\()?', query):
        name, braces, call = match.groups()
        if not call and name not in WORDS:
            yield name, re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', braces or "")


def absent(query, exposed):
    """The selectors of a query without a matching series."""
    found = []
    for name, matchers in selectors(query):
        own = [(label, operator, value) for label, operator, value in matchers if label not in ADDED_BY_PROMETHEUS]
        assert all(operator == "=" for _, operator, _ in own), "this reader knows = alone"
        wanted = [f'{label}="{value}"' for label, _, value in own]
        series = [key for key in exposed if key.partition("{")[0] == name]
        if name not in MADE_BY_PROMETHEUS and not any(all(label in key for label in wanted) for key in series):
            found.append(f"{name} {wanted}")
    return found


def dashboard_queries():
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", ())]


def alerts():
    """Name, expression and the other fields of each rule. The file has each value on one line."""
    text = ALERTS.read_text(encoding="utf-8")
    for rule in re.split(r"^ *- alert: ", text, flags=re.MULTILINE)[1:]:
        name, *lines = rule.splitlines()
        yield name, dict(line.strip().split(": ", 1) for line in lines if ": " in line)


@pytest.fixture(scope="module")
def exposed(tmp_path_factory):
    """The metrics of a broker with a subscriber, a WAL and a TLS listener on a Raspberry Pi."""
    log = str(tmp_path_factory.mktemp("log"))
    board = {"temperature_c": 50.0, "throttled": False, "undervoltage": False}
    cert, key = Authority(tmp_path_factory.mktemp("authority")).sign("broker")
    settings = {
        "wal": {"directory": log},
        "server": {"tls_bind_addr": "127.0.0.1:0"},
        "tls": {"cert_file": str(cert), "key_file": str(key)},
    }
    with pytest.MonkeyPatch.context() as patch, WatchedBroker(settings) as watched:
        patch.setattr("blipmq.broker.status.read_hardware", lambda: board)
        with RawClient(watched.address).hello("reader").subscribe("a") as client:
            client.say(wire.PUB, "a", b"x")
            yield watched.scrape()


def test_every_query_of_the_dashboard_names_series_that_exist(exposed):
    queries = dashboard_queries()
    assert len(queries) > 70
    assert {title: found for title, query in queries if (found := absent(query, exposed))} == {}


def test_every_alert_names_series_that_exist(exposed):
    rules = dict(alerts())
    assert len(rules) > 23
    assert {name: found for name, rule in rules.items() if (found := absent(rule["expr"], exposed))} == {}


def test_the_dashboard_finds_brokers_by_an_existing_metric(exposed):
    (query,) = re.findall(
        r"label_values\((\w+), instance\)", DASHBOARD.read_text(encoding="utf-8").split('"query": "')[2]
    )
    assert absent(query, exposed) == []


def test_every_alert_has_severity_summary_and_remedy():
    for name, rule in alerts():
        assert re.fullmatch(r"\{severity: (info|warning|critical)\}", rule["labels"]), name
        assert len(rule["summary"]) > 20 and len(rule["description"]) > 60, name


def test_the_dashboard_filters_every_query_by_the_broker_chosen():
    for title, query in dashboard_queries():
        for name, matchers in selectors(query):
            assert ("instance", "=~", "$instance") in matchers, (title, name)


def test_dashboard_panels_do_not_overlap():
    taken = set()
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


def test_an_unknown_name_or_label_is_found(exposed):
    assert absent("rate(blipmq_mesages_published_total[5m]) > 0", exposed)
    assert absent('blipmq_messages_dropped_total{reason="lost"}', exposed)
    assert absent("sum by (client) (topk(3, nothing)) / on(instance) group_left() blipmq_connections", exposed)
    assert not absent(
        'sum by (reason) (rate(blipmq_messages_dropped_total{instance=~"a{2}", reason="ttl"}[5m]))', exposed
    )
