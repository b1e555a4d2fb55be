"""The files for hosts: they are valid by their schemas, and agree with the code and each other."""

from __future__ import annotations

import argparse
import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from nexus_gateway.cli.parser import parser
from nexus_gateway.settings import VARIABLES, Settings
from nexus_gateway.web.app import ROUTES

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
NAMES = {variable.name for variable in VARIABLES}
A_KEY = re.compile(r"[A-Z][A-Z0-9]*_KEY_\d+")
DRAIN_S = Settings().shutdown_timeout_ms / 1000


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def loaded(name: str) -> Any:
    return yaml.safe_load(text(name))


def assert_is_served(path: str) -> None:
    assert path in [route.path for route in ROUTES]


def assert_are_settings(names: Iterator[str] | list[str]) -> None:
    assert [n for n in names if n not in NAMES and not A_KEY.fullmatch(n)] == []


def assert_starts(command: str) -> argparse.Namespace:
    """Parse a start command as the shell and the gateway would."""
    program, *arguments = shlex.split(command)
    assert Path(program).name == "nexus-gateway"
    return parser().parse_args(arguments)


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ("vendor.compose-spec", "compose.yaml"),
        *(
            ("vendor.github-workflows", f".github/workflows/{p.name}")
            for p in sorted((ROOT / ".github/workflows").glob("*.yml"))
        ),
    ],
)
def test_a_file_is_valid_by_its_schema(schema: str, name: str) -> None:
    command = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, name)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_uses_files_that_exist() -> None:
    compose = loaded("compose.yaml")
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (
                (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"]
            )
    gateway = compose["services"]["gateway"]
    # The first start is without keys, and shows the demo.
    assert gateway["env_file"] == [{"path": ".env", "required": False}]
    assert_are_settings([*gateway["environment"]])
    assert int(gateway["stop_grace_period"].removesuffix("s")) > DRAIN_S


def test_prometheus_in_compose_reads_what_the_gateway_serves() -> None:
    (job,) = loaded("deploy/prometheus/compose.yml")["scrape_configs"]
    (alone,) = loaded("deploy/prometheus/prometheus.yml")["scrape_configs"]
    assert job["job_name"] == alone["job_name"]  # the alerts name it
    assert job["static_configs"] == [{"targets": ["gateway:3000"]}]
    secret = Path(job["authorization"]["credentials_file"]).name
    assert loaded("compose.yaml")["secrets"][secret] == {"environment": "VIEWER_TOKEN"}


def documents() -> Iterator[dict[str, Any]]:
    for path in sorted(KUBERNETES.glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("document", [*documents()], ids=lambda document: document["kind"])
def test_a_manifest_is_valid(document: dict[str, Any]) -> None:
    if document["kind"] in ("Kustomization", "ServiceMonitor"):
        return  # not Kubernetes' own
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_the_base_can_be_built() -> None:
    command = ("kubectl", "kustomize", str(KUBERNETES))
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert sorted(d["kind"] for d in built) == ["Deployment", "PodDisruptionBudget", "Service"]
    for document in built:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def deployment() -> dict[str, Any]:
    found: dict[str, Any] = loaded("deploy/kubernetes/deployment.yaml")
    return found


def test_the_pods_are_probed_where_the_gateway_answers() -> None:
    (container,) = deployment()["spec"]["template"]["spec"]["containers"]
    paths = {
        kind: container[f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "liveness", "readiness")
    }
    assert paths == {
        "startup": "/health/live",
        "liveness": "/health/live",
        "readiness": "/health/ready",
    }
    for path in paths.values():
        assert_is_served(path)
    (port,) = container["ports"]
    assert f"EXPOSE {port['containerPort']}" in text("Dockerfile")


def test_a_pod_has_time_to_drain() -> None:
    pod = deployment()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    env = {variable["name"]: variable["value"] for variable in container["env"]}
    assert_are_settings([*env])
    Settings.from_env(env)
    pause = int(
        re.search(r"sleep\((\d+)\)", container["lifecycle"]["preStop"]["exec"]["command"][-1])[1]
    )  # type: ignore[index]
    assert pod["terminationGracePeriodSeconds"] > pause + int(env["SHUTDOWN_TIMEOUT_MS"]) / 1000


def test_the_service_and_the_budget_select_the_pods() -> None:
    labels = deployment()["spec"]["template"]["metadata"]["labels"]
    assert deployment()["spec"]["selector"] == {"matchLabels": labels}
    assert loaded("deploy/kubernetes/service.yaml")["spec"]["selector"] == labels
    assert loaded("deploy/kubernetes/pdb.yaml")["spec"]["selector"] == {"matchLabels": labels}


def test_a_pod_runs_as_the_images_user() -> None:
    pod = deployment()["spec"]["template"]["spec"]["securityContext"]
    assert f"USER {pod['runAsUser']}:{pod['runAsGroup']}" in text("Dockerfile")


def test_the_example_secret_has_settings() -> None:
    assert_are_settings([*loaded("deploy/kubernetes/secret.example.yaml")["stringData"]])


# What a host installs from; without one of these Railpack and Heroku install nothing.
def test_hosts_with_a_procfile_install_the_gateway() -> None:
    lines = [line for line in text("requirements.txt").splitlines() if not line.startswith("#")]
    (line,) = lines
    extras = re.fullmatch(r"\.\[([\w,]+)\]", line)
    assert extras
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert {*extras[1].split(",")} <= {*setup["options.extras_require"]}
    assert "file://" in text("requirements.txt")
    kind, _, command = text("Procfile").strip().partition(": ")
    assert kind == "web"
    assert assert_starts(command).host == "0.0.0.0"


def test_railway_builds_the_image_and_lets_it_drain() -> None:
    railway = json.loads(text("railway.json"))
    assert railway["build"] == {"builder": "DOCKERFILE"}
    assert (ROOT / "Dockerfile").exists()
    assert_is_served(railway["deploy"]["healthcheckPath"])
    # Numbers: Railway's parser refuses a deployment with texts, which its reference shows.
    for name, least in (("drainingSeconds", DRAIN_S), ("overlapSeconds", 0)):
        seconds = railway["deploy"][name]
        assert isinstance(seconds, int)
        assert seconds > least


def test_render_builds_the_image_and_lets_it_drain() -> None:
    (service,) = loaded("render.yaml")["services"]
    assert service["runtime"] == "docker"
    assert_is_served(service["healthCheckPath"])
    assert DRAIN_S < service["maxShutdownDelaySeconds"] <= 300
    assert_are_settings([variable["key"] for variable in service["envVars"]])
    Settings.from_env({v["key"]: v["value"] for v in service["envVars"] if "value" in v})


def unit() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(ROOT / "deploy/systemd/nexus-gateway.service", encoding="utf-8")
    return parsed


def test_the_unit_starts_the_gateway_and_lets_it_drain() -> None:
    service = unit()["Service"]
    assert assert_starts(service["ExecStart"]).command == "serve"
    assert int(service["TimeoutStopSec"]) > DRAIN_S
    env = dict(pair.split("=", 1) for pair in shlex.split(service["Environment"]))
    assert Settings.from_env(env).ledger.startswith("/var/lib/" + service["StateDirectory"])
    # A process that hangs is restarted, and writes where.
    assert int(service["WatchdogSec"]) >= 10
    assert env["PYTHONFAULTHANDLER"] == "1"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_the_unit_is_valid(tmp_path: Path) -> None:
    copy = tmp_path / "nexus-gateway.service"
    copy.write_text(
        re.sub(
            r"(?m)^ExecStart=\S+",
            "ExecStart=/bin/true",
            text("deploy/systemd/nexus-gateway.service"),
        )
    )
    command = ("systemd-analyze", "verify", "--man=no", str(copy))
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
