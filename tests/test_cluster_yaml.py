"""cluster.yaml as far as it can be judged without AWS: Ray's schema and reading of it, EC2's own API model, and what the file promises."""

import functools
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
# What Ray's AWS provider reads; its schema would let a misspelt key pass.
PROVIDER = {"type", "region", "availability_zone", "cache_stopped_nodes"}
DOCKER = {"image", "container_name", "run_options"}
SECRETS = re.compile(r"(AKIA|ASIA)[A-Z0-9]{16}|aws_(secret|access|session)|PRIVATE KEY|RAY_AUTH_TOKEN=|(password|secret)[:=]", re.I)


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def config(written: dict[str, Any]) -> dict[str, Any]:
    """The file with Ray's defaults filled in, as `ray up` does it, and valid by its schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(written)
    validate_config(prepared)
    return prepared


@pytest.fixture(scope="module")
def nodes(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return config["available_node_types"]


@functools.cache
def run_instances() -> Any:
    """What EC2's RunInstances takes: Ray hands a node's settings to it as they are."""
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def complaints(settings: dict[str, Any]) -> str:
    return botocore.validate.ParamValidator().validate({**settings, "MinCount": 1, "MaxCount": 1}, run_instances()).generate_report()


def test_provider_has_only_keys_that_ray_reads(written: dict[str, Any]) -> None:
    assert set(written["provider"]) == PROVIDER
    assert written["provider"]["type"] == "aws"
    assert written["provider"]["cache_stopped_nodes"] is False
    region = written["provider"]["region"]
    assert all(re.fullmatch(re.escape(region) + "[a-f]", zone) for zone in written["provider"]["availability_zone"].split(","))


@pytest.mark.parametrize("name", ["head", "cpu_worker", "gpu_worker"])
def test_node_settings_are_what_ec2_accepts(nodes: dict[str, dict[str, Any]], name: str) -> None:
    settings = nodes[name]["node_config"]
    assert complaints(settings) == ""
    assert settings["InstanceType"] in run_instances().members["InstanceType"].enum
    assert settings["ImageId"].startswith(("ami-", "resolve:ssm:/aws/service/"))
    assert settings["IamInstanceProfile"]["Name"] == ("dfdc-ray-head" if name == "head" else "dfdc-ray-worker")
    assert settings["MetadataOptions"]["HttpTokens"] == "required"
    assert settings["SecurityGroupIds"]  # else Ray makes a group that lets in SSH from anywhere
    (disk,) = settings["BlockDeviceMappings"]
    assert disk["Ebs"]["DeleteOnTermination"] is True
    assert disk["Ebs"]["VolumeSize"] >= 100  # GiB: the image, logs, and what Ray spills


def test_the_check_against_ec2_finds_misspelt_settings(nodes: dict[str, dict[str, Any]]) -> None:
    settings = nodes["cpu_worker"]["node_config"]
    assert "IamInstanceProfil" in complaints({**settings, "IamInstanceProfil": {"Name": "x"}})
    assert "MarketTyp" in complaints({**settings, "InstanceMarketOptions": {"MarketTyp": "spot"}})


def test_head_has_no_work(config: dict[str, Any], nodes: dict[str, dict[str, Any]]) -> None:
    assert config["head_node_type"] == "head"
    assert nodes["head"]["resources"] == {"CPU": 0}
    assert nodes["head"]["max_workers"] == 0
    assert "InstanceMarketOptions" not in nodes["head"]["node_config"]


def test_preprocessing_has_spot_nodes_of_its_own(nodes: dict[str, dict[str, Any]]) -> None:
    worker = nodes["cpu_worker"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert worker["min_workers"] == 0
    assert worker["resources"]["preprocess"] == worker["resources"]["CPU"]  # one for each actor, and one actor for each CPU
    assert [name for name, node in nodes.items() if "preprocess" in node["resources"]] == ["cpu_worker"]


def test_workers_offer_the_cpus_that_their_instances_have(nodes: dict[str, dict[str, Any]]) -> None:
    for name in ("cpu_worker", "gpu_worker"):
        factor = re.fullmatch(r"[a-z0-9]+\.(\d*)xlarge", nodes[name]["node_config"]["InstanceType"])
        assert factor, "only the xlarge sizes say how many CPUs they have: 4 for each x"
        assert nodes[name]["resources"]["CPU"] == 4 * int(factor[1] or 1)


def test_gpu_nodes_start_from_none_and_go_soon(config: dict[str, Any], nodes: dict[str, dict[str, Any]]) -> None:
    worker = nodes["gpu_worker"]
    assert worker["resources"]["GPU"] >= 1
    assert worker["min_workers"] == 0
    assert worker["idle_timeout_s"] <= 180
    assert config["max_workers"] >= sum(node["max_workers"] for node in nodes.values())


def test_ray_reads_images_and_time_outs_as_meant(config: dict[str, Any]) -> None:
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    read = AutoscalingConfig(config, skip_content_hash=True)
    images = {name: read.get_docker_config(name)["image"] for name in ("head", "cpu_worker", "gpu_worker")}
    version = metadata.version("dfdc-ray")
    assert images["cpu_worker"] == images["head"] + "-preprocess"
    assert images["gpu_worker"] == images["head"]
    assert images["head"].endswith(f"dfdc-ray:{version}")
    assert read.get_node_type_configs()["gpu_worker"].idle_timeout_s == 120


def test_everything_is_in_one_region(written: dict[str, Any]) -> None:
    """Images are pulled, credentials found and videos read where the nodes are."""
    region = written["provider"]["region"]
    regions = set(re.findall(r"\b[a-z]{2}-[a-z]+-\d\b", (ROOT / "cluster.yaml").read_text()))
    assert regions == {region}
    assert f"-e AWS_DEFAULT_REGION={region}" in written["docker"]["run_options"]


def test_docker_options_are_those_that_ray_reads(written: dict[str, Any]) -> None:
    from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES

    assert set(written["docker"]) == DOCKER
    known = {variable for _, variable, *_ in BOTOCORE_DEFAUT_SESSION_VARIABLES.values() if isinstance(variable, str)}
    for option in written["docker"]["run_options"]:
        kind, value = option.split(" ", 1)
        name = value.split("=")[0]
        assert kind in ("-e", "--ulimit")
        assert name in known or name in ("nofile", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"), f"nobody reads {name}"


def test_ray_spills_to_the_disk_that_the_file_sizes(written: dict[str, Any]) -> None:
    """Workers use the head's directory (ray/_private/node.py), so only the head names it. The option is one that `ray start` has."""
    from ray.scripts.scripts import start

    (head,) = [command for command in written["head_start_ray_commands"] if "ray start" in command]
    assert "--object-spilling-directory=/tmp/" in head
    options = {name for parameter in start.params for name in parameter.opts}
    for command in (head, *written["worker_start_ray_commands"]):
        assert set(re.findall(r"--[a-z-]+", command)) <= options


def test_docker_can_be_used_at_once(written: dict[str, Any]) -> None:
    """A new group of the user would count from the next login only, and Ray keeps its SSH connection."""
    commands = written["initialization_commands"]
    assert not any("usermod" in command for command in commands)
    assert "chgrp" in commands[0]
    assert "docker login" in commands[-1]


def test_nothing_is_installed_on_nodes(config: dict[str, Any]) -> None:
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert config[commands] == []
    for commands in ("initialization_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        assert not re.search(r"\bpip\b|\.whl", " ".join(config[commands]))


def test_token_authentication_on_every_node(config: dict[str, Any]) -> None:
    options = config["docker"]["run_options"]
    assert "-e RAY_AUTH_MODE=token" in options
    (path,) = [o.split("=", 1)[1] for o in options if "RAY_AUTH_TOKEN_PATH" in o]
    assert config["file_mounts"] == {path: "~/.ray/auth_token"}
    assert not any("dashboard-host" in command for command in config["head_start_ray_commands"])  # the loopback only


def test_no_secrets() -> None:
    assert not SECRETS.search((ROOT / "cluster.yaml").read_text())
    assert SECRETS.search("aws_secret_access_key: x")


def test_images_carry_the_locked_ray() -> None:
    """The machine that submits, the head and the workers: all of one version."""
    for name in ("all", "preprocess"):
        locked = re.search(r"^ray==(\S+)", (ROOT / "requirements" / f"{name}.lock").read_text(), re.M)
        assert locked
        assert locked[1] == metadata.version("ray")
        assert f"FROM rayproject/ray:{locked[1]}-py311-cpu AS environment" in (ROOT / "Dockerfile").read_text()
