"""The files of ``deploy/``: they parse, and name only what there is."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families
from typer.core import TyperGroup

from vlmguard.cli.main import app
from vlmguard.engines import EngineSpec
from vlmguard.engines.openai import server_of
from vlmguard.errors import EngineTimeout
from vlmguard.gateway.metrics import Metrics
from vlmguard.gateway.settings import load_settings
from vlmguard.types import Rewrite, Usage

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "vlmguard.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
SETTINGS = ("gateway.yaml", "kubernetes/gateway.yaml")
OWN_ROUTES = ("/health/live", "/health/ready")
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


@pytest.mark.parametrize("name", SETTINGS)
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


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What the command line makes of arguments; a wrong one is an error."""
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while isinstance(command, TyperGroup):
        command = command.commands[rest.pop(0)]
    with command.make_context("vlmguard", rest) as context:
        values: dict[str, Any] = context.params
    return values


def containers() -> dict[str, Any]:
    """Of the pod in which the gateway runs, by name."""
    deployment = next(iter(kubernetes("gateway.yml", "Deployment")))
    return {one["name"]: one for one in deployment["spec"]["template"]["spec"]["containers"]}


def kubernetes(file: str, kind: str) -> list[Any]:
    """Objects of a kind in one of the Kubernetes files."""
    objects = yaml.safe_load_all((DEPLOY / "kubernetes" / file).read_text())
    return [item for item in objects if item["kind"] == kind]


def dockerfile(word: str) -> list[str]:
    """What stands after an instruction."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.removeprefix(word).strip() for line in text.splitlines() if line.startswith(word)]


def typed() -> Iterator[str]:
    """What comments and alerts tell people to type, without the command's name."""
    for path in DEPLOY.rglob("*"):
        if path.suffix in {".yml", ".yaml"}:
            pattern = r"(?:run --rm gateway|`vlmguard|#\s+vlmguard) ([^`#\n]+)"
            yield from re.findall(pattern, path.read_text())


def test_every_command_line_is_one_that_the_command_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the image, of Compose, of Kubernetes, and of what people are told to type."""
    pods = containers()
    gateway = parsed(pods["gateway"]["args"])
    assert gateway["config"] == Path("/etc/vlmguard/settings/gateway.yaml")
    audit = parsed(pods["audit"]["args"])
    assert (audit["follow"], audit["as_json"]) == (True, True)
    log = load_settings(DEPLOY / "kubernetes" / "gateway.yaml", {}).audit
    assert audit["log"] == log
    assert {"name": "VLMGUARD_AUDIT", "value": log} in pods["gateway"]["env"]
    command = compose()["services"]["gateway"]["command"]
    assert parsed(command)["config"] == Path("/etc/vlmguard/gateway.yaml")
    assert dockerfile("ENTRYPOINT") == ['["vlmguard"]']
    assert parsed(json.loads(dockerfile("CMD")[-1]))["host"] == "0.0.0.0"  # read
    monkeypatch.setenv("VLMGUARD_AUDIT", str(log))
    lines = list(typed())
    assert len(lines) >= 4
    for line in lines:
        assert parsed(shlex.split(line))


def test_the_variables_that_are_set_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt one would be ignored in silence."""
    image = dict(re.findall(r"(VLMGUARD_\w+)=(\S+)", " ".join(dockerfile("ENV"))))
    service = compose()["services"]["gateway"]["environment"]
    for name, value in {**image, **service}.items():
        monkeypatch.setenv(name, value)
    serving = parsed(["serve"])
    assert serving["target"] == service["VLMGUARD_TARGET"]
    assert serving["rewriter"] == service["VLMGUARD_REWRITER"]
    assert str(parsed(["keys", "list"])["file"]) == image.pop("VLMGUARD_KEYS")
    assert parsed(["audit", "tail"])["log"] == image.pop("VLMGUARD_AUDIT")
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    assert [name for name in {**image, **service} if name not in source] == []


def test_ports_paths_and_hosts_agree() -> None:
    """Of the settings, the image, Compose, Kubernetes, and whoever asks the gateway."""
    settings = [load_settings(DEPLOY / name, {}) for name in SETTINGS]
    assert {one.port for one in settings} == {8080}
    assert dockerfile("EXPOSE") == ["8080"]
    assert compose()["services"]["gateway"]["ports"] == ["127.0.0.1:8080:8080"]
    gateway = containers()["gateway"]
    assert gateway["ports"] == [{"name": "http", "containerPort": 8080}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = gateway[probe]["httpGet"]
        assert (asked["port"], asked["path"] in OWN_ROUTES) == ("http", True)
    assert any(path in dockerfile("HEALTHCHECK")[0] for path in OWN_ROUTES)
    (service,) = kubernetes("gateway.yml", "Service")
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    (mounted,) = [one for one in kubernetes("network.yml", "NetworkPolicy") if "8080" in str(one)]
    assert mounted["spec"]["podSelector"]["matchLabels"] == service["spec"]["selector"]
    hosts = {urlsplit(str(one.redis)).hostname for one in settings}
    assert hosts == {kubernetes("redis.yml", "Service")[0]["metadata"]["name"]}
    assert hosts <= set(compose()["services"])
    target = EngineSpec.parse(expanded(service_environment()["VLMGUARD_TARGET"]))
    assert urlsplit(server_of(target).url).hostname in compose()["services"]


def test_every_file_that_the_settings_name_has_a_place() -> None:
    """Where it is named there is a volume: the containers' own file systems are read-only."""
    settings = load_settings(DEPLOY / "kubernetes" / "gateway.yaml", {})
    mounts = [mount["mountPath"] for mount in containers()["gateway"]["volumeMounts"]]
    for path in (settings.keys, settings.audit, "/tmp/x"):  # inside a container
        assert any(Path(str(path)).is_relative_to(mount) for mount in mounts), path
    settings = load_settings(DEPLOY / "gateway.yaml", {})
    service = compose()["services"]["gateway"]
    mounts = [volume.split(":")[1] for volume in service["volumes"]]
    for path in (settings.keys, settings.audit, "/etc/vlmguard/gateway.yaml"):
        assert any(Path(str(path)).is_relative_to(mount) for mount in mounts), path


def expanded(text: str) -> str:
    """Compose's ``${NAME:-default}``, with nothing set; they may stand in each other."""
    while (found := re.sub(r"\$\{\w+:-([^${}]*)\}", r"\1", text)) != text:
        text = found
    return text


def service_environment() -> dict[str, str]:
    """Of the gateway in Compose."""
    values: dict[str, str] = compose()["services"]["gateway"]["environment"]
    return values


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
