"""deploy/ agrees with the code: metrics on the dashboard, settings that exist, no port open to the network."""

import ast
import json
import re
import shutil
import subprocess
from collections import Counter as Tally
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from emostream.model.samples import LABELS, MODALITIES
from emostream.streams.frames import LANES
from emostream.streams.metrics import JOIN_OUTCOMES, STAGES, Metrics
from emostream.streams.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE_TEXT = (DEPLOY / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
WORKERS = ("worker", "worker-gpu")
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/emostream.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]

SERIES_OF = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}
"""What Prometheus calls the series of a metric, by its type."""

GIVEN_LABELS = {"job", "instance", "le"}
"""Labels that Prometheus and histograms add."""

VALUES_OF = {"stage": STAGES, "lane": LANES, "path": MODALITIES, "emotion": LABELS}
"""Labels that have the same values in every metric."""

WAIT_OUTCOME = ("emostream_join_wait_seconds_count", "outcome")
"""`outcome` of late halves has other values."""


def declared_metrics() -> dict[str, set[str]]:
    """Return each metric of the code with the names of its series."""
    registry = CollectorRegistry()
    Metrics(registry)
    return {family.name: {family.name + suffix for suffix in SERIES_OF[family.type]} for family in registry.collect()}


def declared_labels() -> dict[str, set[str]]:
    """Return the labels of each series, without those that Prometheus adds."""
    made = [metric for metric in vars(Metrics(CollectorRegistry())).values() if isinstance(metric, MetricWrapperBase)]
    labels = {metric.describe()[0].name: set(metric._labelnames) for metric in made}
    return {series: labels[name] for name, all_series in declared_metrics().items() for series in all_series}


def dashboard_expressions() -> Iterator[str]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        if "expr" in annotation:
            yield annotation["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]


def series_in(expressions: Iterator[str]) -> set[str]:
    return {name for expression in expressions for name in re.findall(r"\bemostream_[a-z0-9_]+", expression)}


# Metrics: code, dashboard and alerts


def test_every_metric_is_on_the_dashboard() -> None:
    shown = series_in(dashboard_expressions())
    missing = [metric for metric, series in declared_metrics().items() if not series & shown]
    assert missing == []


def test_dashboard_and_alerts_use_metrics_that_exist() -> None:
    known = set().union(*declared_metrics().values())
    used = series_in(dashboard_expressions()) | series_in(rule["expr"] for rule in ALERTS)
    assert used - known == set()


def test_selectors_name_labels_and_values_that_exist() -> None:
    labels = declared_labels()
    for expression in [*dashboard_expressions(), *(rule["expr"] for rule in ALERTS)]:
        for series, selector in re.findall(r"\b(emostream_[a-z0-9_]+)\{([^}]*)\}", expression):
            if series == "emostream_model_info":  # an Info's labels come with its value
                continue
            for label, value in re.findall(r'(\w+)=~?"([^"]*)"', selector):
                assert label in labels[series] | GIVEN_LABELS, expression
                values = JOIN_OUTCOMES if (series, label) == WAIT_OUTCOME else VALUES_OF.get(label)
                assert values is None or set(value.split("|")) <= set(values), expression


def test_sums_keep_labels_that_exist() -> None:
    labels = declared_labels()
    for expression in [*dashboard_expressions(), *(rule["expr"] for rule in ALERTS)]:
        for kept, series in re.findall(r"sum by \(([^)]*)\) \(\w+\((emostream_[a-z0-9_]+)", expression):
            assert set(kept.split(", ")) <= labels[series] | GIVEN_LABELS, expression


# Dashboard


def test_panel_ids_and_titles_are_unique() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert [twice for twice, count in Tally([*ids, *titles]).items() if count > 1] == []


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["type"] in ("table", "state-timeline") or panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
        assert "rate(" not in target["expr"] or "[$__rate_interval]" in target["expr"]
        assert "emostream_" not in target["expr"] or 'instance=~"$instance"' in target["expr"]


def test_legends_name_what_tells_lines_apart() -> None:
    labels = declared_labels()
    for panel in PANELS:
        for target in panel["targets"]:
            expression = target["expr"]
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            if sums := re.findall(r"sum(?: by \(([^)]*)\))? ?\(", expression):
                left = set(sums[0].split(", ")) - {"le", ""}
            elif series := re.match(r"emostream_\w+", expression):
                left = labels[series[0]] | {"instance"}
            else:
                continue
            assert target["legendFormat"] == "__auto" or shown == left, panel["title"]


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert taken.setdefault(cell, panel["title"]) == panel["title"]


def test_each_emotion_has_one_colour_everywhere() -> None:
    by_emotion = [panel for panel in PANELS if "{{emotion}}" in {t["legendFormat"] for t in panel["targets"]}]
    assert len(by_emotion) == 3
    for panel in by_emotion:
        overrides = panel["fieldConfig"]["overrides"]
        assert overrides == by_emotion[0]["fieldConfig"]["overrides"]
        assert sorted(override["matcher"]["options"] for override in overrides) == sorted(LABELS)
        assert len({override["properties"][0]["value"]["fixedColor"] for override in overrides}) == len(LABELS)


def test_grafana_is_given_the_data_source_and_the_dashboard() -> None:
    provisioning = DEPLOY / "grafana/provisioning"
    source = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"][0]
    provider = yaml.safe_load((provisioning / "dashboards/emostream.yaml").read_text())["providers"][0]
    variable = next(v for v in DASHBOARD["templating"]["list"] if v["type"] == "datasource")
    interval = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert variable["current"]["value"] == source["uid"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == interval
    mounted = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounted
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (DEPLOY / "grafana/dashboards" / home.name).is_file()


# Alerts


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"].endswith(".")
    assert rule["alert"] in (PROMETHEUS / "alerts_test.yml").read_text()


@pytest.fixture(scope="module")
def promtool() -> str:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not on the path (it comes with Prometheus): PromQL was not checked")
    return path


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")],
    ids=" ".join,
)
def test_promtool_accepts(promtool: str, arguments: tuple[str, ...]) -> None:
    run = subprocess.run([promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_promtool_parses_every_expression_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    expressions = [expr for expr in dashboard_expressions() if not expr.startswith("label_values(")]
    for name, value in (("$__rate_interval", "20s"), ("$__range", "30m"), ("$instance", ".+")):
        expressions = [expr.replace(name, value) for expr in expressions]
    rules = [{"record": f"dashboard:expression:{n}", "expr": expr} for n, expr in enumerate(expressions)]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


# Compose


def test_docker_compose_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("`docker compose` is not installed: compose.yaml was checked by our own assertions only")
    command = [docker, "compose", "--file", str(DEPLOY / "compose.yaml"), "--profile", "gpu", "config", "--quiet"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_local_pinned_and_watched(name: str) -> None:
    service = SERVICES[name]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "network_mode" not in service
    assert service["healthcheck"]["test"]
    assert service["restart"]
    if "build" not in service:
        assert re.search(r":v?\d+\.\d+\.\d+(-[a-z0-9.]+)?$", service["image"]), f"{service['image']} is not pinned"


@pytest.mark.parametrize("name", SERVICES)
def test_service_refers_to_what_exists(name: str) -> None:
    service = SERVICES[name]
    for dependency, terms in service.get("depends_on", {}).items():
        assert terms["condition"] == "service_healthy"
        assert "healthcheck" in SERVICES[dependency]
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", WORKERS)
def test_worker_can_be_scaled(name: str) -> None:
    service = SERVICES[name]
    assert not {"ports", "container_name", "hostname"} & service.keys()
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"][0]["dns_sd_configs"][0]
    assert scraped["names"] == service["networks"]["default"]["aliases"]
    assert scraped["port"] == Settings.model_fields["http_port"].default
    assert f"EXPOSE {scraped['port']}\n" in DOCKERFILE
    assert service["environment"]["EMOSTREAM_HTTP_HOST"] == "0.0.0.0"  # noqa: S104  # inside its container


@pytest.mark.parametrize("name", WORKERS)
def test_worker_finds_kafka_and_redis(name: str) -> None:
    environment = SERVICES[name]["environment"]
    listeners = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert f"INTERNAL://{environment['EMOSTREAM_KAFKA']}" in listeners
    assert f"HOST://{Settings.model_fields['kafka'].default}" in listeners
    assert environment["EMOSTREAM_REDIS"].startswith("redis://redis:6379/")


@pytest.mark.parametrize("name", WORKERS)
def test_worker_and_nobody_else_creates_topics(name: str) -> None:
    """Posts and clips meet only where both topics have the same number of partitions, which the worker sees to."""
    assert SERVICES["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert Settings.model_fields["create_topics"].default is True
    changed = {"EMOSTREAM_CREATE_TOPICS", "EMOSTREAM_PARTITIONS", "EMOSTREAM_POSTS_TOPIC", "EMOSTREAM_CLIPS_TOPIC"}
    assert not changed & SERVICES[name]["environment"].keys()
    assert f"as many partitions as posts ({Settings.model_fields['partitions'].default})" in COMPOSE_TEXT


def test_gpu_worker_comes_only_when_asked_for() -> None:
    assert "profiles" not in SERVICES["worker"]
    gpu = SERVICES["worker-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_defaults_named_on_the_dashboard_are_the_defaults() -> None:
    named = re.findall(
        r"EMOSTREAM_(\w+) \((\d+) if not set\)", (DEPLOY / "grafana/dashboards/emostream.json").read_text()
    )
    assert len(named) >= 3
    for name, value in named:
        assert Settings.model_fields[name.lower()].default == int(value), name


@pytest.mark.parametrize("file", sorted(f for f in DEPLOY.rglob("*") if f.is_file()), ids=lambda f: f.name)
def test_settings_named_in_deploy_exist(file: Path) -> None:
    named = re.findall(r"\bEMOSTREAM_([A-Z0-9_]+)", file.read_text())
    assert {name.lower() for name in named} - Settings.model_fields.keys() == set()


# Dockerfile


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Return each stage's base and its instructions, lines joined."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, text.splitlines()):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = (base, [])
        else:
            found[name][1].append((word, rest))
    return found


def instructions(name: str) -> list[tuple[str, str]]:
    """Return what makes a stage, its bases' instructions first."""
    base, own = stages()[name]
    return [*(instructions(base) if base in stages() else []), *own]


@pytest.mark.parametrize("name", WORKERS)
def test_image_of_a_worker(name: str) -> None:
    build = SERVICES[name]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert ROOT / build["dockerfile"] == DEPLOY / "Dockerfile"
    made = instructions(build["target"])
    assert made[-1][0] == "USER"
    assert int(made[-1][1]) > 0
    assert ("ENTRYPOINT", '["emostream"]') in made
    assert ("CMD", '["worker"]') in made
    assert "/healthz" in dict(made)["HEALTHCHECK"]
    assert not any("apt-get" in rest for _, rest in made)


def test_dependencies_are_pinned_and_installed_before_the_source() -> None:
    for kind in ("cpu", "cuda"):
        made = instructions(f"dependencies-{kind}")
        assert any("-c constraints.txt -r requirements.txt" in rest for _, rest in made)
        assert not any("streams" in rest for word, rest in made if word == "COPY")
    assert "whl/cpu" in str(instructions("dependencies-cpu"))
    assert "whl/cpu" not in str(instructions("dependencies-cuda"))


def test_python_in_the_dockerfile_compiles() -> None:
    programs = re.findall(r'\["python", "-c", ("(?:[^"\\]|\\.)*")\]', DOCKERFILE)
    programs += [json.dumps(SERVICES[name]["healthcheck"]["test"][3]) for name in WORKERS]
    assert len(programs) == 4
    for program in programs:
        ast.parse(json.loads(program))


def test_what_the_dockerfile_copies_is_let_into_the_build() -> None:
    let_in = set(re.findall(r"^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), flags=re.MULTILINE))
    copied: set[str] = set()
    for _, made in stages().values():
        for word, rest in made:
            if word == "COPY" and "--from" not in rest:
                copied.update(rest.split()[:-1])
    assert copied == let_in
