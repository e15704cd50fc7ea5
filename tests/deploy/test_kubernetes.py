"""The manifests: what Kubernetes would refuse, and what would not fit together once they run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tidecast.service.config import settings

yaml = pytest.importorskip("yaml", reason="needs tidecast[dev]")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs tidecast[dev]")

ROOT = Path(__file__).parents[2] / "deploy" / "kubernetes"
RENDERED = ("base", "overlays/production")
CUSTOM = {
    "ScaledObject",
    "TriggerAuthentication",
    "ServiceMonitor",
    "PrometheusRule",
}  # no schemas ship with Kubernetes
VERSIONS = ("1.29", kubernetes_validate.latest_version())


def render(folder: str) -> list[dict[str, Any]]:
    """What would be applied."""
    for tool in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(tool[0]):
            done = subprocess.run([*tool, str(ROOT / folder)], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            return list(yaml.safe_load_all(done.stdout))
    pytest.skip("needs kustomize or kubectl: go install sigs.k8s.io/kustomize/kustomize/v5@latest")


@pytest.fixture(scope="module", params=RENDERED)
def manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(request.param)


def of_kind(manifests: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name of what makes them -> the pods' template."""
    found = {}
    for each in manifests:
        spec = each.get("spec", {})
        spec = spec["jobTemplate"]["spec"] if each["kind"] == "CronJob" else spec
        if each["kind"] in ("StatefulSet", "Deployment", "Job", "CronJob"):
            found[each["metadata"]["name"]] = spec["template"]
    return found


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def kafka_trigger(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (scaled,) = of_kind(manifests, "ScaledObject").values()
    (trigger,) = scaled["spec"]["triggers"]
    return dict(trigger["metadata"])


def environment(manifests: list[dict[str, Any]]) -> dict[str, str]:
    """The settings that all share."""
    (found,) = [e["data"] for n, e in of_kind(manifests, "ConfigMap").items() if "TIDECAST_GROUP" in e["data"]]
    return dict(found)


# What Kubernetes says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(ROOT.glob("**/*.yaml")), ids=lambda f: str(f.relative_to(ROOT)))
def test_every_file_is_what_kubernetes_takes_of_its_own_kinds(file: Path) -> None:
    """As written, before kustomize; patches of custom kinds, and kustomize's own, are not Kubernetes'."""
    text = file.read_text()
    if file.name == "kustomization.yaml" or (file.parent.name == "production" and file.name == "retrain.yaml"):
        assert yaml.safe_load(text)  # a patch says only what changes
        return
    for manifest in yaml.safe_load_all(text):
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_applied_passes_kubernetes_own_schemas_strictly(manifests: list[dict[str, Any]], version: str) -> None:
    checked = [m["kind"] for m in manifests if m["kind"] not in CUSTOM]
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)
    assert {"StatefulSet", "Job", "CronJob", "NetworkPolicy", "PodDisruptionBudget", "Service"} <= set(checked)


def test_a_misspelt_field_does_not_pass() -> None:
    manifest = yaml.safe_load((ROOT / "base" / "disruption.yaml").read_text())
    manifest["spec"]["maxUnavailible"] = manifest["spec"].pop("maxUnavailable")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


# What would not fit together -----------------------------------------------------------------------------------


def test_no_container_is_root_writes_to_its_image_or_may_gain_rights(manifests: list[dict[str, Any]]) -> None:
    assert set(pods(manifests)) == {"tidecast-worker", "tidecast-topics", "tidecast-retrain"}
    for name, pod in pods(manifests).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        for container in containers(pod):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"], container["name"]
            assert context["capabilities"] == {"drop": ["ALL"]}, container["name"]
            assert {"requests", "limits"} <= set(container["resources"]), container["name"]
            assert not container["image"].endswith(":latest") and ":" in container["image"], container["image"]


def test_every_setting_that_is_given_exists(manifests: list[dict[str, Any]]) -> None:
    """A worker ends at an unknown TIDECAST_*."""
    known = {settings.variable(name) for name in settings.FIELDS}
    given = set(environment(manifests))
    for pod in pods(manifests).values():
        for container in containers(pod):
            given |= {each["name"] for each in container.get("env", []) if each["name"].startswith(settings.PREFIX)}
    assert given <= known


def test_the_worker_has_time_to_drain_before_it_is_killed(manifests: list[dict[str, Any]]) -> None:
    spec = pods(manifests)["tidecast-worker"]["spec"]
    env = {each["name"]: each.get("value") for each in spec["containers"][0]["env"]}
    assert spec["terminationGracePeriodSeconds"] > float(env["TIDECAST_SHUTDOWN_TIMEOUT_SECONDS"])


def test_each_worker_has_a_name_that_outlives_a_restart(manifests: list[dict[str, Any]]) -> None:
    worker = of_kind(manifests, "StatefulSet")["tidecast-worker"]  # a Deployment's pods get a new name each time
    env = {each["name"]: each for each in worker["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert env["TIDECAST_INSTANCE"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert worker["spec"]["serviceName"] in of_kind(manifests, "Service")


def test_the_probes_ask_pages_that_are_served(manifests: list[dict[str, Any]]) -> None:
    worker = pods(manifests)["tidecast-worker"]["spec"]["containers"][0]
    probes = {name: worker[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/livez",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    ports = {port["name"]: port["containerPort"] for port in worker["ports"]}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert ports == {"http": settings.default("http_port")}


def test_no_more_workers_than_partitions(manifests: list[dict[str, Any]]) -> None:
    (scaled,) = of_kind(manifests, "ScaledObject").values()
    args = pods(manifests)["tidecast-topics"]["spec"]["containers"][0]["args"]
    assert scaled["spec"]["maxReplicaCount"] == int(args[args.index("--partitions") + 1])
    target = scaled["spec"]["scaleTargetRef"]
    assert target["name"] in of_kind(manifests, target["kind"])
    assert "replicas" not in of_kind(manifests, target["kind"])[target["name"]]["spec"], "KEDA's number would be undone"


def test_the_scaler_looks_at_the_group_and_topic_that_the_workers_use(manifests: list[dict[str, Any]]) -> None:
    trigger, env = kafka_trigger(manifests), environment(manifests)
    assert trigger["consumerGroup"] == env["TIDECAST_GROUP"]
    assert trigger["topic"] == env["TIDECAST_INPUT_TOPIC"]
    assert trigger["bootstrapServers"] == env["TIDECAST_BOOTSTRAP_SERVERS"]
    assert ("tls" in trigger) == ("SSL" in env.get("TIDECAST_SECURITY_PROTOCOL", ""))


def test_selectors_find_the_workers_and_prometheus_the_service(manifests: list[dict[str, Any]]) -> None:
    labels = pods(manifests)["tidecast-worker"]["metadata"]["labels"].items()
    (service,) = of_kind(manifests, "Service").values()
    (budget,) = of_kind(manifests, "PodDisruptionBudget").values()
    (monitor,) = of_kind(manifests, "ServiceMonitor").values()
    policies = of_kind(manifests, "NetworkPolicy")
    for selector in (
        service["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
        *(policy["spec"]["podSelector"]["matchLabels"] for policy in policies.values()),
    ):
        assert selector.items() <= labels
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert endpoint["path"] == "/metrics"


def test_what_pods_mount_and_read_is_there(manifests: list[dict[str, Any]]) -> None:
    there = {kind: set(of_kind(manifests, kind)) for kind in ("ConfigMap", "Secret", "PersistentVolumeClaim")}
    for pod in pods(manifests).values():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        for volume in volumes.values():
            for field, kind, name in (
                ("configMap", "ConfigMap", "name"),
                ("secret", "Secret", "secretName"),
                ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
            ):
                assert field not in volume or volume[field][name] in there[kind], volume
        for container in containers(pod):
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            assert {each["configMapRef"]["name"] for each in container.get("envFrom", [])} <= there["ConfigMap"]


def test_files_of_the_settings_are_mounted(manifests: list[dict[str, Any]]) -> None:
    files = {Path(value) for name, value in environment(manifests).items() if name.endswith("_FILE")}
    for name in ("tidecast-worker", "tidecast-topics"):
        spec = pods(manifests)[name]["spec"]
        secrets = {v["name"]: v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v}
        mounted = {
            Path(mount["mountPath"]) / key
            for mount in spec["containers"][0]["volumeMounts"]
            if mount["name"] in secrets
            for key in of_kind(manifests, "Secret")[secrets[mount["name"]]]["stringData"]
        }
        assert files <= mounted


def test_the_alerts_are_those_that_promtool_tests() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    said = generate.OUT.read_text()
    assert said == generate.prometheus_rule(), "run: python deploy/kubernetes/generate.py"
    alerts = [rule["alert"] for g in yaml.safe_load(said)["spec"]["groups"] for rule in g["rules"] if "alert" in rule]
    assert len(alerts) >= 9


# Retraining ------------------------------------------------------------------------------------------------------


@pytest.fixture
def retrain(tmp_path: Path) -> Any:
    """Runs the job's script with a `tidecast` that notes how it is called, and fails where `fails` says so."""
    stub = tmp_path / "tidecast"
    stub.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ "$1" != "$FAILS" ]\n')
    stub.chmod(0o755)

    def run(fails: str = "", **env: str) -> tuple[int, list[list[str]]]:
        path = f"{tmp_path}:{os.environ['PATH']}"
        known = {"PATH": path, "FAILS": fails, "CONFIG": "c.toml", "DATA": "d.csv", "MODEL": "/models/weather"}
        done = subprocess.run(["sh", str(ROOT / "base" / "retrain.sh")], env=known | env, timeout=30, check=False)
        calls = (tmp_path / "calls").read_text().splitlines()
        return done.returncode, [call.split() for call in calls]

    return run


def test_a_candidate_is_trained_and_then_published_through_the_gate(retrain: Any) -> None:
    code, ((train, *trained), (publish, *published)) = retrain(TOLERANCE="0.01")
    assert (code, train, publish) == (0, "train", "publish")
    candidate = trained[trained.index("--out") + 1]
    assert trained[:3] == ["c.toml", "--data", "d.csv"] and "--train-until" not in trained
    assert published == f"--candidate {candidate} --model /models/weather --data d.csv --tolerance 0.01".split()


def test_the_dates_of_the_job_move_on_with_the_calendar(retrain: Any) -> None:
    import datetime

    _, (train, _) = retrain(TEST_DAYS="14", VALIDATE_DAYS="28")
    ends = [datetime.date.fromisoformat(train[train.index(f"--{n}-until") + 1][:10]) for n in ("train", "validate")]
    assert ends[1] - ends[0] == datetime.timedelta(days=28)
    today = datetime.datetime.now(datetime.UTC).date()
    assert abs((today - ends[1]).days - 14) <= 1


def test_nothing_is_published_where_training_fails_and_a_refusal_fails_the_job(retrain: Any) -> None:
    code, calls = retrain(fails="train")
    assert code == 1 and [call[0] for call in calls] == ["train"]
    code, _ = retrain(fails="publish")
    assert code == 1


def test_the_job_calls_tidecast_with_flags_that_it_has(retrain: Any) -> None:
    pytest.importorskip("torch")
    import argparse

    from tidecast.training.commands import publish, train

    _, calls = retrain(TEST_DAYS="14", VALIDATE_DAYS="28")
    for command, (_, *flags) in zip((train, publish), calls, strict=True):
        parser = argparse.ArgumentParser(exit_on_error=False)
        command.configure(parser)
        parser.parse_args(flags)


def test_the_example_s_config_is_one_that_training_takes() -> None:
    pytest.importorskip("torch")
    from tidecast.training.config import read_config

    assert read_config(ROOT / "overlays" / "production" / "model.toml").name == "weather"
