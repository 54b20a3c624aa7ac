"""The files of ``deploy/``: they parse, and name only what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from vlmguard.errors import EngineTimeout
from vlmguard.gateway.metrics import Metrics
from vlmguard.gateway.settings import load_settings
from vlmguard.types import Rewrite, Usage

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "vlmguard.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
_SCRAPED = {"instance", "job", "le", "namespace", "pod"}
"""Labels that Prometheus adds."""

pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="deploy/ is not in the package")


def everything() -> Metrics:
    """Metrics with every number used once, so that each shows its labels."""
    metrics = Metrics()
    rewrite = Rewrite(
        verdict="risky",
        risk=1.0,
        category="fraud",
        action="rewrite",
        report=None,
        prompt="",
        changed=True,
        usage=Usage(prompt_tokens=1),
        timings_ms={"cache": 1.0},
        failure="EngineTimeout: slow",
    )
    metrics.decision(rewrite, mode="enforce")
    metrics.request("/v1/chat/completions", 200, 1.0)
    metrics.failure("target", EngineTimeout("slow"))
    metrics.refused("rate")
    metrics.breaker("target", "closed")
    return metrics


def exported() -> dict[str, set[str]]:
    """Name of a sample → its labels."""
    families = text_string_to_metric_families(everything().render().decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def expressions() -> Iterator[str]:
    """Every query of the dashboard, the alerts and the autoscaler."""
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in dashboard["templating"]["list"]:
        yield str(variable["query"])
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    adapter = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text())
    yield from (rule["seriesQuery"] for rule in adapter["rules"]["custom"])
    autoscaling = yaml.safe_load((DEPLOY / "kubernetes" / "autoscaling.yml").read_text())
    yield from (metric["pods"]["metric"]["name"] for metric in autoscaling["spec"]["metrics"])


def test_every_metric_and_label_that_is_asked_for_is_exported() -> None:
    """A dashboard that shows nothing looks like a quiet day."""
    known = exported()
    asked = set()
    for expression in expressions():
        for name, labels in re.findall(r"(vlmguard_\w+)(?:\{([^}]*)\})?", expression):
            asked.add(name)
            assert name in known, f"{name} in {expression}"
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels))
            assert used <= known[name] | _SCRAPED, f"{expression}: {used - known[name]}"
        for labels in re.findall(r"\bby \(([^)]*)\)", expression):
            names = {name.strip() for name in labels.split(",")}
            assert names <= set.union(_SCRAPED, *known.values()), expression
    assert len(asked) >= 10


def test_every_metric_is_on_the_dashboard() -> None:
    """Whatever is worth counting is worth a look."""
    shown = " ".join(expressions())
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in exported()}
    assert [name for name in sorted(families) if name not in shown] == []


def test_the_dashboard_is_laid_out_without_gaps_or_overlaps() -> None:
    """Panels of one row fill its width; ids are unique."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    rows: dict[int, int] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] == rows.get(place["y"], 0)
        rows[place["y"]] = place["x"] + place["w"]
    assert set(rows.values()) == {24}


def test_alerts_say_how_bad_it_is_and_what_to_do() -> None:
    """At three in the morning, too."""
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in {"critical", "warning", "info"}
            assert rule["annotations"]["summary"]
            assert rule["annotations"]["description"]


@pytest.mark.parametrize("name", ["gateway.yaml", "kubernetes/gateway.yaml"])
def test_the_gateways_settings_are_valid(name: str) -> None:
    """Every field is one that there is."""
    settings = load_settings(DEPLOY / name, {})
    assert settings.keys is not None
    assert settings.audit is not None


def test_everything_parses() -> None:
    """All YAML and JSON files."""
    files = [path for path in DEPLOY.rglob("*") if path.suffix in {".yaml", ".yml", ".json"}]
    assert len(files) >= 14
    for path in files:
        assert list(yaml.safe_load_all(path.read_text()))


def compose() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return values


def test_compose_mounts_what_there_is_and_joins_what_must_meet() -> None:
    """Files, networks and the address that Prometheus asks."""
    services = compose()["services"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            exists = (DEPLOY / source).exists() if source.startswith(".") else None
            assert exists is not False, source
            assert exists or source in compose()["volumes"]
        assert set(service["networks"]) <= set(compose()["networks"])
    for other in ("redis", "vllm", "prometheus"):
        assert set(services["gateway"]["networks"]) & set(services[other]["networks"])
    (scrape,) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())[
        "scrape_configs"
    ]
    assert scrape["static_configs"][0]["targets"] == ["gateway:8080"]
    settings = load_settings(DEPLOY / "gateway.yaml", {})
    assert int(services["gateway"]["stop_grace_period"].rstrip("s")) > settings.drain_s


def test_only_this_machine_reaches_what_compose_publishes() -> None:
    """Redis and Prometheus not even that."""
    for name, service in compose()["services"].items():
        ports = service.get("ports", [])
        assert all(port.startswith("127.0.0.1:") for port in ports)
        assert bool(ports) == (name in {"gateway", "grafana"})
    assert compose()["networks"]["state"] == {"internal": True}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_kubernetes_files_build() -> None:
    """By kubectl itself; every name that one object says of another is there."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kubernetes")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    named = {(item["kind"], item["metadata"]["name"]): item for item in objects}
    deployment = named["Deployment", "vlmguard"]
    pod = deployment["spec"]["template"]["spec"]
    scaled = named["HorizontalPodAutoscaler", "vlmguard"]["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) in named
    assert "replicas" not in deployment["spec"]
    (settings,) = [volume for volume in pod["volumes"] if volume["name"] == "settings"]
    assert ("ConfigMap", settings["configMap"]["name"]) in named
    drain = load_settings(DEPLOY / "kubernetes" / "gateway.yaml", {}).drain_s
    assert pod["terminationGracePeriodSeconds"] > drain
    for container in pod["containers"]:
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}
