"""The RayJob manifests in docs/deploy as far as they can be judged without Kubernetes: KubeRay's field names, Ray's own reading of the
cluster in them, and what they promise. Their pod templates were checked once against Kubernetes' schemas: docs/cluster.md.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
# The fields of KubeRay's reference (v1.6.2, ray.io/v1) that a RayJob may have here. The API server drops others without a word.
FIELDS = {
    "RayJobSpec": {
        *("activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata", "clusterSelector", "entrypoint"),
        *(
            "submitterConfig",
            "managedBy",
            "deletionStrategy",
            "runtimeEnvYAML",
            "jobId",
            "submissionMode",
            "entrypointResources",
            "suspend",
        ),
        *("entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished", "shutdownAfterJobFinishes"),
    },
    "RayClusterSpec": {
        *("upgradeStrategy", "authOptions", "suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations", "headGroupSpec"),
        *("enableInTreeAutoscaling", "gcsFaultToleranceOptions", "rayVersion", "workerGroupSpecs"),
    },
    "AuthOptions": {"enableK8sTokenAuth", "secretName", "mode"},
    "AutoscalerOptions": {
        *("resources", "image", "imagePullPolicy", "securityContext", "idleTimeoutSeconds", "upscalingMode", "version", "env", "envFrom"),
        "volumeMounts",
    },
    "HeadGroupSpec": {"template", "headService", "enableIngress", "resources", "labels", "rayStartParams", "serviceType"},
    "WorkerGroupSpec": {
        *("suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "resources", "labels", "rayStartParams"),
        *("template", "scaleStrategy", "numOfHosts"),
    },
}
NAMES = ("preprocess", "train")


@pytest.fixture(scope="module")
def jobs() -> dict[str, dict[str, Any]]:
    return {name: yaml.safe_load((ROOT / "docs" / "deploy" / f"rayjob-{name}.yaml").read_text()) for name in NAMES}


@pytest.fixture(scope="module")
def aws() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(params=NAMES)
def job(request: pytest.FixtureRequest, jobs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return jobs[request.param]


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's group, then those of workers."""
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return only


def node_types(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What Ray's autoscaler makes of the cluster that KubeRay would make of the manifest."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as derive

    cluster = {"metadata": {"name": "made-of-the-job", "namespace": "default"}, "spec": job["spec"]["rayClusterSpec"]}
    return derive(cluster)["available_node_types"]


def test_fields_are_those_of_kuberay(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,46}", job["metadata"]["name"])  # KubeRay allows 47 characters
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    head, *workers = groups(job)
    for kind, value in [
        ("RayJobSpec", spec),
        ("RayClusterSpec", cluster),
        ("AuthOptions", cluster["authOptions"]),
        ("AutoscalerOptions", cluster["autoscalerOptions"]),
        ("HeadGroupSpec", head),
        *(("WorkerGroupSpec", group) for group in workers),
    ]:
        assert set(value) <= FIELDS[kind], f"{kind} has no {set(value) - FIELDS[kind]}"


def test_a_job_ends_and_takes_its_cluster_with_it(job: dict[str, Any]) -> None:
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < spec["ttlSecondsAfterFinished"] <= 3600
    assert 0 < spec["activeDeadlineSeconds"] <= 7 * 86400
    assert 1 <= spec["backoffLimit"] <= 5


def test_the_token_is_on_and_ray_is_the_locked_one(job: dict[str, Any]) -> None:
    locked = re.search(r"^ray==(\S+)", (ROOT / "requirements" / "all.lock").read_text(), re.M)
    assert locked
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == locked[1]
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert "RAY_AUTH" not in json.dumps(job)  # KubeRay sets these


def test_images_are_those_of_the_dockerfile(job: dict[str, Any], aws: dict[str, Any]) -> None:
    """With the code in them, which nobody uploads here; for preprocessing the small one."""
    plain = aws["docker"]["image"] + ("-preprocess" if "preprocess" in job["metadata"]["name"] else "")
    assert {container(group)["image"] for group in groups(job)} == {f"{plain}-job"}
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^FROM \S+ AS (\w+)", dockerfile, re.M) == ["environment", "job"]
    for folder in ("dfdc_ray", "jobs"):
        assert f"COPY {folder} /home/ray/app/{folder}\n" in dockerfile
    assert "ENV PYTHONPATH=/home/ray/app\n" in dockerfile
    sent = (ROOT / ".dockerignore").read_text().split()
    for source in re.findall(r"^COPY (\S+)", dockerfile, re.M):
        assert "!" + source.replace("${LOCK}", "*.lock") in sent


def test_the_entrypoint_is_a_job_with_options_that_it_has(job: dict[str, Any]) -> None:
    import tyro

    from dfdc_ray.cli import COMMANDS

    assert "\n" not in job["spec"]["entrypoint"].strip()
    python, script, *options = shlex.split(job["spec"]["entrypoint"])
    assert python == "python"
    path = Path(script).relative_to("/home/ray/app")
    assert (ROOT / path).is_file()
    config = tyro.cli(COMMANDS[path.stem][0], args=options)
    policy = (ROOT / "docs" / "deploy" / "iam-jobs.json").read_text()
    assert f'"arn:aws:s3:::{config.out.removeprefix("s3://")}/*"' in policy  # the bucket and one of the prefixes that jobs may write to
    assert config.workers > 1  # told, since the cluster begins with no CPU


def test_no_work_on_the_head_and_workers_from_none(job: dict[str, Any]) -> None:
    head, *workers = node_types(job).values()
    assert head["resources"]["CPU"] == 0
    for worker in workers:
        assert worker["min_workers"] == 0
        assert 0 < worker["max_workers"] <= 20
    assert all(group["replicas"] == 0 for group in groups(job)[1:])
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert 60 <= job["spec"]["rayClusterSpec"]["autoscalerOptions"]["idleTimeoutSeconds"] <= 600


def test_preprocessing_finds_its_resource_cpus_and_memory_on_spot_nodes(jobs: dict[str, dict[str, Any]]) -> None:
    from dfdc_ray.preprocess.run import MEMORY_PER_ACTOR

    job = jobs["preprocess"]
    worker = node_types(job)["cpu-spot"]
    assert worker["resources"]["preprocess"] == worker["resources"]["CPU"] == 15
    assert worker["resources"]["memory"] >= 15 * MEMORY_PER_ACTOR
    options = job["spec"]["entrypoint"]
    assert f"--workers {15 * worker['max_workers'] - 1} " in options + " "  # one CPU is left for Ray's own tasks
    assert "--resource preprocess" in options
    _, group = groups(job)
    assert group["template"]["spec"]["nodeSelector"] == {"eks.amazonaws.com/capacityType": "SPOT"}
    assert "nvidia.com/gpu" not in json.dumps(job)


def test_training_finds_its_gpus_and_cpus(jobs: dict[str, dict[str, Any]]) -> None:
    job = jobs["train"]
    worker = node_types(job)["gpu"]
    assert worker["resources"]["GPU"] == 1
    options = dict(re.findall(r"--([a-z-]+) (\d+)", job["spec"]["entrypoint"]))
    assert "--gpu" in job["spec"]["entrypoint"]
    assert int(options["workers"]) <= worker["max_workers"] * worker["resources"]["GPU"]
    assert int(options["cpus-per-worker"]) < worker["resources"]["CPU"]
    _, group = groups(job)
    assert container(group)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in group["template"]["spec"]["tolerations"]
    assert "SPOT" not in json.dumps(group)


def test_custom_resources_are_written_as_kuberay_and_the_shell_read_them(job: dict[str, Any]) -> None:
    """KubeRay puts the text behind `ray start --resources=` in a shell, and reads it itself without the quotes."""
    for group in groups(job):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        if text := group["rayStartParams"].get("resources"):
            (argument,) = shlex.split(f"--resources={text}")
            assert json.loads(argument.removeprefix("--resources=")) == json.loads(text.strip("'")) == {"preprocess": 15}


def test_start_parameters_are_options_of_ray_start(job: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    options = {name for parameter in start.params for name in parameter.opts}
    for group in groups(job):
        assert {f"--{name}" for name in group["rayStartParams"]} <= options


def test_ray_spills_to_a_volume_of_the_pod(job: dict[str, Any]) -> None:
    for group in groups(job):
        directory = group["rayStartParams"]["object-spilling-directory"]
        (mount,) = container(group)["volumeMounts"]
        (volume,) = group["template"]["spec"]["volumes"]
        assert mount == {"name": volume["name"], "mountPath": directory}
        assert volume["emptyDir"]["sizeLimit"]
        assert not directory.startswith("/tmp/ray")  # KubeRay mounts logs there


def test_pods_have_a_role_and_few_rights(job: dict[str, Any]) -> None:
    head, *workers = (group["template"]["spec"] for group in groups(job))
    assert head["serviceAccountName"] == "dfdc-ray-head"  # KubeRay lets its autoscaler change pods
    for pod in workers:
        assert pod["serviceAccountName"] == "dfdc-ray-worker"
        assert pod["automountServiceAccountToken"] is False
    for pod in (head, *workers):
        assert pod["securityContext"]["runAsNonRoot"] is True
        (only,) = pod["containers"]
        assert only["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        requests, limits = only["resources"]["requests"], only["resources"]["limits"]
        assert {k: limits[k] for k in ("cpu", "memory")} == {k: requests[k] for k in ("cpu", "memory")}


def test_the_region_is_that_of_cluster_yaml(job: dict[str, Any], aws: dict[str, Any]) -> None:
    region = aws["provider"]["region"]
    for group in groups(job):
        assert container(group)["env"] == [{"name": "AWS_DEFAULT_REGION", "value": region}]
    assert set(re.findall(r"\b[a-z]{2}-[a-z]+-\d\b", json.dumps(job))) == {region}


def test_both_jobs_have_the_same_head(jobs: dict[str, dict[str, Any]]) -> None:
    one, other = (groups(job)[0] for job in jobs.values())
    other_image = container(other)["image"]
    text = json.dumps(one).replace(container(one)["image"], other_image)
    assert json.loads(text) == other


def test_no_secrets_in_manifests(job: dict[str, Any]) -> None:
    secrets = re.compile(r'(AKIA|ASIA)[A-Z0-9]{16}|aws_(secret|access|session)|PRIVATE KEY|"(password|secret|token)": "\w{20}', re.I)
    assert not secrets.search(json.dumps(job))
    assert secrets.search('"token": "0123456789abcdef0123"')
