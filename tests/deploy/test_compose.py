"""The compose files: what an operator takes for granted of each service. `python -m tests.compose` runs them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tidecast.service.config import settings

yaml = pytest.importorskip("yaml", reason="needs tidecast[dev]")

ROOT = Path(__file__).parents[2]
OVERLAYS = ("compose.tls.yml", "compose.scale.yml")
ENV = dict(re.findall(r"^([A-Z_0-9]+)=(.*)$", (ROOT / ".env").read_text(), re.MULTILINE))


def read(file: str) -> dict[str, Any]:
    text = re.sub(r"\$\{([A-Z_0-9]+)(?::-[^}]*)?\}", lambda m: ENV[m[1]], (ROOT / file).read_text())
    return dict(yaml.safe_load(text))


def together(*overlays: str) -> dict[str, Any]:
    """The services as docker merges them: maps by name, lists one after the other, all else replaced."""
    services = read("docker-compose.yml")["services"]
    for overlay in overlays:
        for name, more in read(overlay)["services"].items():
            services[name] = _merged(services.get(name, {}), more)
    return dict(services)


def _merged(one: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    out = dict(one)
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = _merged(out[key], value)
        elif key in ("volumes", "ports", "expose") and key in out:
            out[key] = [*out[key], *value]
        else:
            out[key] = value
    return out


@pytest.fixture(params=[(), *((overlay,) for overlay in OVERLAYS)], ids=["alone", *OVERLAYS])
def services(request: pytest.FixtureRequest) -> dict[str, Any]:
    return together(*request.param)


def test_all_parts_are_there(services: dict[str, Any]) -> None:
    parts = "kafka topics trainer producer sensors worker watch prometheus grafana kafka-exporter"
    assert set(parts.split()) <= set(services)


def test_every_image_is_pinned_in_env(services: dict[str, Any]) -> None:
    for name, service in services.items():
        _, _, tag = service["image"].partition(":")
        assert re.match(r"v?\d+\.\d+", tag), f"{name}: {service['image']}"
    for file in ("docker-compose.yml", *OVERLAYS):
        for image in re.findall(r"^\s+image: (.*)$", (ROOT / file).read_text(), re.MULTILINE):
            assert "${" in image, f"{file}: {image} is pinned here, not in .env"


def test_each_service_is_healthy_limited_restarted_and_keeps_its_log_short(services: dict[str, Any]) -> None:
    for name, service in services.items():
        health = service["healthcheck"]
        once = health.get("disable") is True
        assert once or health["test"][0] in ("CMD", "CMD-SHELL"), name
        assert service["restart"].startswith("on-failure" if once else "unless-stopped"), name
        assert service["mem_limit"], name
        assert service["logging"]["options"]["max-size"], name
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        assert "container_name" not in service and service.get("privileged") is not True, name


def test_only_kafka_and_what_keeps_data_writes_and_our_own_images_never_do(services: dict[str, Any]) -> None:
    writing = {name for name, service in services.items() if not service.get("read_only")}
    assert all(name.startswith("kafka") and services[name]["image"] == ENV["KAFKA_IMAGE"] for name in writing)


def test_every_port_is_on_loopback_and_no_worker_has_one(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.rsplit(":", 1)[0] for port in ports}) == len(ports), "two services want one port"
    assert "ports" not in services["worker"], "a second worker could not start"


def test_every_setting_that_is_given_exists(services: dict[str, Any]) -> None:
    known = {settings.variable(name) for name in settings.FIELDS}
    given = {name for s in services.values() for name in s.get("environment", {}) if name.startswith(settings.PREFIX)}
    assert given <= known


def test_who_is_waited_for_is_there_and_can_be_waited_for(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            once = services[other]["healthcheck"].get("disable") is True
            expected = "service_completed_successfully" if once else "service_healthy"
            assert how["condition"] == expected, f"{name} waits for {other}"


def test_a_worker_may_drain_before_it_is_killed(services: dict[str, Any]) -> None:
    worker = services["worker"]
    limit = worker["environment"]["TIDECAST_SHUTDOWN_TIMEOUT_SECONDS"]
    assert int(worker["stop_grace_period"].removesuffix("s")) > limit


def test_prometheus_scrapes_services_that_are_there(services: dict[str, Any]) -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert {"tidecast", "kafka-exporter"} <= set(jobs)
    for job in jobs.values():
        names = [name for found in job.get("dns_sd_configs", []) for name in found["names"]]
        names += [target.split(":")[0] for found in job.get("static_configs", []) for target in found["targets"]]
        assert set(names) <= {*services, "localhost"}


def test_what_is_mounted_or_built_from_the_repository_is_there(services: dict[str, Any]) -> None:
    stages = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "deploy" / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    for name, service in services.items():
        if "build" in service:
            assert service["build"]["target"] in stages, name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), f"{name}: {source}"


def test_the_images_have_the_fast_kafka_client(services: dict[str, Any]) -> None:
    args = [
        service["build"]["args"]
        for service in services.values()
        if "EXTRAS" in service.get("build", {}).get("args", {})
    ]
    assert len(args) == 2 and all("fast" in each["EXTRAS"].split() for each in args)
    assert "\nARG EXTRAS=fast\n" in (ROOT / "deploy/docker/Dockerfile").read_text()


def test_what_slimming_the_worker_s_image_leaves_is_imported_once_each() -> None:
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[\[<>=]", each)[0].replace("kafka-python", "kafka").replace("-", "_") for each in needs}
    tried = re.findall(r'python -c "import ([a-z0-9_, ]+)"', (ROOT / "deploy" / "docker" / "Dockerfile").read_text())
    assert [set(each.split(", ")) for each in tried] == [names]


def test_under_tls_every_client_s_password_comes_from_a_file() -> None:
    services = together("compose.tls.yml")
    clients = [s for s in services.values() if "TIDECAST_BOOTSTRAP_SERVERS" in s.get("environment", {})]
    assert len(clients) == 5
    for service in clients:
        environment = service["environment"]
        assert environment["TIDECAST_SECURITY_PROTOCOL"] == "SASL_SSL"
        assert "secrets:/secrets:ro" in service["volumes"]
        for name in ("TIDECAST_KAFKA_PASSWORD_FILE", "TIDECAST_TLS_CA_FILE"):
            assert environment[name].startswith("/secrets/")
    listeners = services["kafka"]["environment"]["KAFKA_LISTENERS"].split(",")
    how = dict(
        each.split(":") for each in services["kafka"]["environment"]["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    )
    for listener in listeners:
        name, address = listener.split("://")
        assert how[name] == "SASL_SSL" or address.startswith("localhost:"), listener


def test_three_brokers_hold_three_copies_and_a_commit_waits_for_two() -> None:
    services = together("compose.scale.yml")
    brokers = [s["environment"] for s in services.values() if s["image"] == ENV["KAFKA_IMAGE"]]
    assert sorted(broker["KAFKA_NODE_ID"] for broker in brokers) == [1, 2, 3]
    for broker in brokers:
        copies = {v for k, v in broker.items() if k.endswith("REPLICATION_FACTOR")}
        waits = {v for k, v in broker.items() if k.endswith(("MIN_ISR", "INSYNC_REPLICAS"))}
        assert (copies, waits) == ({3}, {2})
        assert broker["CLUSTER_ID"] == brokers[0]["CLUSTER_ID"]
        assert len(broker["KAFKA_CONTROLLER_QUORUM_VOTERS"].split(",")) == 3
    assert services["worker"]["deploy"]["replicas"] == 3
