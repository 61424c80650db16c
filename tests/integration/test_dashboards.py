"""deploy/prometheus and deploy/grafana, against a real Prometheus that scrapes a loaded whitd."""

import json
import re
import shutil
import subprocess

import pytest
import yaml
from conftest import BIN_DIR
from monitoring import FOLDER, ROOT, Prometheus, load, tool
from whitd import TIMEOUT, Whitd, eventually

DASHBOARDS = {path.stem: json.loads(path.read_text())
              for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))}
RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
         for rule in group["rules"]]
NPM_PACKAGES = ("@grafana/grafana-foundation-sdk@0.0.21", "typescript@5.9.3")


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


QUERIES = {(name, panel["title"], target["refId"]): target["expr"]
           for name, dashboard in DASHBOARDS.items()
           for panel in panels(dashboard) for target in panel["targets"]}
EXPRESSIONS = [*QUERIES.values(), *(rule["expr"] for rule in RULES)]


def without_variables(expression):
    """As Grafana sends it when all replicas are chosen."""
    sent = expression.replace("$instance", ".*").replace("$__rate_interval", "5s")
    assert "$" not in sent, sent
    return sent


@pytest.fixture(scope="module")
def prometheus(tiny_model, tmp_path_factory):
    """Has scraped a whitd under pressure, and goes on doing so."""
    tool("prometheus")
    server = Whitd(BIN_DIR / "whitd", tiny_model, "--kv-cache-bytes=2M", "--kv-policy=adaptive:8",
                   "--kv-floor=K2V2", "--max-running=16", "--max-queue-requests=2")
    started = Prometheus(tmp_path_factory.mktemp("prometheus"), [server.metrics_address])
    with load(server, clients=20):
        yield started
    started.stop()
    assert server.stop() == 0


def test_the_load_is_one(prometheus):
    for what in ("sum(whit_demotions_total) > 0", "whit_requests_waiting > 0",
                 "sum(whit_admission_rejections_total{reason='queue_full'}) > 0",
                 "whit_prefix_cache_hit_tokens_total > 0"):
        eventually(lambda what=what: prometheus.has_data(what), what)


@pytest.mark.parametrize("query", QUERIES, ids=" / ".join)
def test_every_query_of_every_panel_gives_data(prometheus, query):
    expression = without_variables(QUERIES[query])
    eventually(lambda: prometheus.has_data(expression), expression)


def test_every_recording_rule_gives_data_and_no_rule_fails(prometheus):
    for rule in RULES:
        if "record" in rule:
            eventually(lambda rule=rule: prometheus.has_data(rule["record"]), rule["record"])
    evaluated = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(evaluated) == len(RULES)
    assert {rule["health"] for rule in evaluated} == {"ok"}, evaluated


def test_metrics_and_labels_that_are_named_exist(prometheus):
    eventually(lambda: prometheus.has_data("instance:whit_engine_busy:ratio_rate1m"), "rules")
    # One is there with TLS alone.
    known = prometheus.values_of("__name__") | {"whit_tls_certificate_expiry_timestamp_seconds"}
    named = re.compile(r"\b(?:instance:)?(?:whit|process|scrape)_[a-z0-9_:]+")
    for expression in EXPRESSIONS:
        assert set(named.findall(expression)) <= known, expression
        for label, _, wanted in re.findall(r'(\w+)(=~?)"([^"]*)"', expression):
            if label not in ("instance", "job", "alertname", "alertstate"):
                assert set(wanted.split("|")) <= prometheus.values_of(label), expression


def test_an_alert_fires_when_the_server_is_full(prometheus):
    """WhitHeadroomGone waits ten minutes; until then it is pending."""

    def pending():
        return any(alert["labels"]["alertname"] == "WhitHeadroomGone"
                   for alert in prometheus.get("alerts")["alerts"])

    eventually(pending, "WhitHeadroomGone is pending")


def test_metrics_are_named_as_prometheus_wants_them(server):
    """But for bits per element, which are no amount of bytes."""
    done = subprocess.run([tool("promtool"), "check", "metrics"], input=server.metrics_text(),
                          capture_output=True, text=True, timeout=TIMEOUT)
    complaints = [line for line in (done.stdout + done.stderr).splitlines()
                  if "_bits_per_element " not in line]
    assert complaints == []


def test_rules_do_what_their_tests_say():
    promtool = tool("promtool")
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run([promtool, *arguments], cwd=FOLDER, capture_output=True, text=True,
                              timeout=TIMEOUT)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_is_tested_and_every_alert_says_what_to_do():
    tests = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test.get("alert_rule_test", ())
             if case["exp_alerts"]}
    used = " ".join(EXPRESSIONS)
    for rule in RULES:
        if "alert" in rule:
            assert rule["alert"] in fired
            assert rule["labels"]["severity"] in ("info", "warning", "critical")
            assert rule["annotations"].keys() == {"summary", "action"}
        else:
            assert rule["record"] in used, "nobody looks at it"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboards_are_whole(name):
    dashboard = DASHBOARDS[name]
    assert dashboard["uid"] == f"whit-{name}"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for link in dashboard["links"]:
        assert re.match(r"/d/whit-(\w+)", link["url"])[1] in DASHBOARDS
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    for panel in panels(dashboard):
        assert panel["title"] and panel["description"]
        assert panel["fieldConfig"]["defaults"].get("unit") or panel["type"] == "heatmap"
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {
                "type": "prometheus", "uid": "${datasource}"}


@pytest.fixture(scope="module")
def grafana_types(tmp_path_factory):
    """A folder in which tsc knows Grafana's published types of dashboards and panels."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: Grafana's types cannot be had")
    folder = tmp_path_factory.mktemp("grafana-types")
    (folder / "package.json").write_text("{}")
    done = subprocess.run([npm, "install", "--ignore-scripts", "--no-audit", "--no-fund",
                           *NPM_PACKAGES], cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {' and '.join(NPM_PACKAGES)}: {done.stderr[-300:]}")
    return folder


# The types have enums where JSON has their values. Grafana fills in the options that are left out.
TYPES = """
type Json<T> =
  T extends string ? `${T}` : T extends number ? number : T extends boolean | null | undefined ? T :
  T extends (infer U)[] ? Json<U>[] :
  { [K in keyof T as K extends "_implementsDataqueryVariant" ? never : K]: Json<T[K]> };
type Options<T> = Partial<Json<T>>;
"""


def as_typescript():
    """The dashboards as literals of those types: unknown fields and values are errors."""
    used = {panel["type"] for dashboard in DASHBOARDS.values() for panel in panels(dashboard)}
    lines = [f'import * as {name} from "@grafana/grafana-foundation-sdk/{name}";'
             for name in ("dashboard", "prometheus", *sorted(used))]
    lines.append(TYPES)

    def literal(wanted, value):
        lines.append(f"const _{len(lines)}: {wanted} = {json.dumps(value)};")

    def without(value, *keys):
        return {key: item for key, item in value.items() if key not in keys}

    for board in DASHBOARDS.values():
        literal('Json<Omit<dashboard.Dashboard, "panels">>', without(board, "panels"))
        for row in (panel for panel in board["panels"] if panel["type"] == "row"):
            literal('Json<Omit<dashboard.RowPanel, "panels">>', without(row, "panels"))
        for panel in panels(board):
            kind = panel["type"]
            fields = panel["fieldConfig"]
            literal('Json<Omit<dashboard.Panel, "options" | "targets" | "fieldConfig">>',
                    without(panel, "options", "targets", "fieldConfig"))
            literal(f"Options<{kind}.Options>", panel["options"])
            literal('Json<Omit<dashboard.FieldConfig, "custom">>',
                    without(fields["defaults"], "custom"))
            if "custom" in fields["defaults"]:
                literal(f"Json<{kind}.FieldConfig>", fields["defaults"]["custom"])
            for target in panel["targets"]:
                literal("Json<prometheus.Dataquery>", target)
    lines.append("// @ts-expect-error: such mistakes are found")
    literal("Options<stat.Options>", {"graphMode": "pie"})
    lines.append("// @ts-expect-error")
    literal("Json<timeseries.FieldConfig>", {"lineWidht": 1})
    return "\n".join(lines)


def test_dashboards_are_of_grafanas_published_types(grafana_types):
    (grafana_types / "check.ts").write_text(as_typescript())
    done = subprocess.run(
        [grafana_types / "node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck",
         "--module", "nodenext", "--moduleResolution", "nodenext", "--target", "es2022",
         "check.ts"], cwd=grafana_types, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]


def test_provisioning_fits_together():
    def load_provisioning(name):
        return yaml.safe_load((ROOT / "deploy/grafana/provisioning" / name).read_text())

    source, = load_provisioning("datasources/prometheus.yaml")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    scrape = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
    provider, = load_provisioning("dashboards/whit.yaml")["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
