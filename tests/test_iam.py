"""The IAM policies in docs/deploy: what is really asked of S3 and of EC2, held against them; they allow that and little else."""

import http.client
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from s3_server import S3, forget_connections

from dfdc_ray import storage

ROOT = Path(__file__).resolve().parents[1]
HEAD, JOBS = (json.loads((ROOT / "docs" / "deploy" / f"iam-{name}.json").read_text()) for name in ("head", "jobs"))
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
# Whoever uses these files puts names of their own in them.
BUCKET = JOBS["Statement"][0]["Resource"].rpartition(":")[2]
REGION = CLUSTER["provider"]["region"]
ACCOUNT = CLUSTER["docker"]["image"].partition(".")[0]
GROUPS = CLUSTER["available_node_types"]["head"]["node_config"]["SecurityGroupIds"]
INSTANCE = f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-1"


def several(value: Any) -> list[Any]:
    """IAM takes one thing or a list of it."""
    return value if isinstance(value, list) else [value]


def actions(policy: dict[str, Any]) -> set[str]:
    return {action for statement in policy["Statement"] for action in several(statement["Action"])}


def statements(policy: dict[str, Any], action: str) -> list[dict[str, Any]]:
    return [statement for statement in policy["Statement"] if action in several(statement["Action"])]


def allows(policy: dict[str, Any], action: str, resource: str, **facts: str) -> bool:
    """As IAM decides, for the operators that the policies use. facts: the request's condition keys, `s3_prefix` for s3:prefix."""
    known = {name.replace("_", ":", 1): value for name, value in facts.items()}

    def holds(operator: str, key: str, wanted: Any) -> bool:
        if key not in known:
            return operator.endswith("IfExists")
        like = operator.startswith("StringLike")
        return any(fnmatchcase(known[key], w) if like else known[key] == w for w in several(wanted))

    return any(
        any(fnmatchcase(resource, pattern) for pattern in several(statement["Resource"]))
        and all(holds(operator, k, v) for operator, keys in statement.get("Condition", {}).items() for k, v in keys.items())
        for statement in statements(policy, action)
    )


@pytest.mark.parametrize("policy", [HEAD, JOBS], ids=["head", "jobs"])
def test_a_policy_names_what_it_allows(policy: dict[str, Any]) -> None:
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        assert set(statement) <= {"Sid", "Effect", "Action", "Resource", "Condition"}
        assert not any("*" in action for action in several(statement["Action"]))
        if statement["Action"] != "ec2:DescribeInstances":  # EC2 does not restrict it by resource
            assert "*" not in several(statement["Resource"])


# What storage asks of S3.


class Recorder:
    """A proxy that hands every request on to an S3 server and remembers (method, path with query, status)."""

    def __init__(self, target: str) -> None:
        host, requests = urlsplit(target).netloc, []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def hand_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                connection = http.client.HTTPConnection(host, timeout=30)
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)  # signatures cover the host
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                data = answer.read()
                requests.append((self.command, self.path, answer.status))
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(answer.getheader("Content-Length") if self.command == "HEAD" else len(data)))
                self.end_headers()
                self.wfile.write(data)
                connection.close()

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = hand_on

            def log_message(self, *_: object) -> None:
                pass

        self.requests: list[tuple[str, str, int]] = requests
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def recorder(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Between this process and the S3 server, on which the bucket of the runbook holds one zip of videos."""
    client = s3.server.client()
    client.create_bucket(Bucket=BUCKET)
    part = BytesIO()
    with zipfile.ZipFile(part, "w") as archive:
        archive.writestr("dfdc_train_part_3/metadata.json", '{"a.mp4": {"label": "REAL"}}')
        archive.writestr("dfdc_train_part_3/a.mp4", b"a video")
    client.put_object(Bucket=BUCKET, Key="dfdc/dfdc_train_part_03.zip", Body=part.getvalue())
    recorder = Recorder(s3.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", recorder.endpoint)
    forget_connections()
    yield recorder
    recorder.server.shutdown()


def read_the_corpus(uri: str) -> None:
    from dfdc_ray.corpus.index import build_index
    from dfdc_ray.corpus.zips import open_video

    table, _ = build_index([uri])
    (row,) = table.to_pylist()
    with open_video(row["uri"]) as video:
        assert video.read() == b"a video"


def write_an_output(uri: str) -> None:
    """What preprocess, pack and evaluate do with theirs: begun, resumed, read."""
    index, receipt = storage.join(uri, "index.parquet"), storage.join(uri, "receipts", "unit.0.json")
    assert not storage.exists(index)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(index)
    storage.make_dirs(storage.join(uri, "receipts"))
    assert storage.list_dir(storage.join(uri, "receipts")) == []
    storage.write_bytes(storage.join(uri, "faces", "unit.parquet"), b"x" * 100_000)
    assert [storage.create_once(receipt, b"{}") for _ in range(2)] == [True, False]
    assert storage.read_bytes(receipt) == b"{}"
    assert storage.stat(uri).is_dir
    assert len(storage.list_dir(uri, recursive=True)) == 4
    with storage.open_input(storage.join(uri, "faces", "unit.parquet")) as file:
        file.seek(-8, 2)
        assert file.read() == b"x" * 8


def keep_checkpoints(uri: str) -> None:
    """What train does, and what Ray Train adds to it: a folder for its records, and a file to see that it can write."""
    from pyarrow import fs

    from dfdc_ray.train import checkpoint

    checkpoints = storage.join(uri, "checkpoints")
    assert checkpoint.newest(checkpoints) is None
    for step in (1, 2, 3):
        storage.write_bytes(storage.join(checkpoints, checkpoint.step_name(step), "config.json"), b"{}")
    checkpoint.prune(checkpoints, last=checkpoint.step_name(3), keep=2)
    assert [entry.name for entry in storage.list_dir(checkpoints)] == [checkpoint.step_name(step) for step in (2, 3)]
    filesystem, path = fs.FileSystem.from_uri(storage.join(uri, "ray"))
    filesystem.create_dir(path)  # asks whether there is such a bucket
    with filesystem.open_output_stream(f"{path}/.validate_storage_marker") as stream:
        stream.write(b"")
    assert filesystem.get_file_info(f"{path}/checkpoint_manager_snapshot.json").type == fs.FileType.NotFound


def asked_for(method: str, path: str, status: int) -> Iterator[tuple[str, str, dict[str, str]]]:
    """What IAM is asked about a request: action, resource, condition keys."""
    url = urlsplit(path)
    bucket, _, key = unquote(url.path).lstrip("/").partition("/")
    query = parse_qs(url.query, keep_blank_values=True)
    bucket_arn = f"arn:aws:s3:::{bucket}"
    if method in ("GET", "HEAD") and not key:
        yield "s3:ListBucket", bucket_arn, {"s3_prefix": query["prefix"][0]} if "prefix" in query else {}
        return
    assert key, f"{method} {path} is a request that these tests do not know"
    by_method = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "POST": "s3:PutObject"}
    deletion = "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject"
    yield by_method.get(method, deletion), f"{bucket_arn}/{key}", {}
    if status == 404:  # S3 says so only to those who may list, others are denied; whether the key is then the prefix, AWS does not document
        yield "s3:ListBucket", bucket_arn, {"s3_prefix": key}
        yield "s3:ListBucket", bucket_arn, {}


@pytest.mark.s3
def test_jobs_may_do_what_they_do_and_need_what_they_may(recorder: Recorder) -> None:
    from dfdc_ray.doctor import check_storage

    read_the_corpus(f"s3://{BUCKET}/dfdc")
    write_an_output(f"s3://{BUCKET}/faces")
    for output in ("packed", "report"):
        storage.write_bytes(f"s3://{BUCKET}/{output}/manifest.json", b"{}")
        assert storage.list_dir(f"s3://{BUCKET}/{output}")
    keep_checkpoints(f"s3://{BUCKET}/model")
    assert check_storage(f"s3://{BUCKET}/faces").level == "ok"

    ours = [request for request in recorder.requests if unquote(request[1]).startswith(f"/{BUCKET}")]
    assert len(ours) > 30
    needed = set()
    for request in ours:
        for action, resource, facts in asked_for(*request):
            assert allows(JOBS, action, resource, **facts), f"{request}: {action} on {resource} {facts}"
            needed.add(action)
    # An upload is only aborted when it fails, and storage.py makes none; what Ray Train writes is uploaded in parts.
    assert actions(JOBS) == needed | {"s3:AbortMultipartUpload"}


def test_jobs_may_neither_change_the_corpus_nor_delete_faces_nor_look_elsewhere() -> None:
    arn = f"arn:aws:s3:::{BUCKET}"
    assert allows(JOBS, "s3:GetObject", f"{arn}/dfdc/dfdc_train_part_00.zip")
    assert not allows(JOBS, "s3:PutObject", f"{arn}/dfdc/dfdc_train_part_00.zip")
    assert not allows(JOBS, "s3:DeleteObject", f"{arn}/dfdc/dfdc_train_part_00.zip")
    assert not allows(JOBS, "s3:DeleteObject", f"{arn}/faces/receipts/unit.0.json")
    assert not allows(JOBS, "s3:DeleteObject", f"{arn}/packed/manifest.json")
    assert not allows(JOBS, "s3:GetObject", f"{arn}/payroll/2024.csv")
    assert not allows(JOBS, "s3:ListBucket", arn, s3_prefix="payroll/")
    assert not allows(JOBS, "s3:GetObject", "arn:aws:s3:::another-bucket/dfdc/a.mp4")


def test_only_one_module_talks_to_s3() -> None:
    """So that what is recorded above is all: the other one that does is Ray Train, told so by `storage_path`."""
    ways = re.compile(r"^\s*(?:import|from) (?:boto3|botocore|pyarrow\.fs|s3fs|fsspec)\b|^\s*from pyarrow import .*\bfs\b", re.M)
    found = [path.relative_to(ROOT).as_posix() for path in (ROOT / "dfdc_ray").rglob("*.py") if ways.search(path.read_text())]
    assert found == ["dfdc_ray/s3.py"]


# What Ray asks of EC2.

ANSWERS: dict[str, Any] = {
    "DescribeInstanceTypes": {
        "InstanceTypes": [
            {"InstanceType": name, "VCpuInfo": {"DefaultVCpus": cpus}, "MemoryInfo": {"SizeInMiB": 4096 * cpus}}
            for name, cpus in {"m6i.xlarge": 4, "m6i.4xlarge": 16, "g5.2xlarge": 8}.items()
        ]
    },
    "DescribeKeyPairs": {"KeyPairs": []},
    "CreateKeyPair": {"KeyName": "a key", "KeyMaterial": "a private key"},
    "DescribeSubnets": {
        "Subnets": [
            {"SubnetId": "subnet-1", "VpcId": "vpc-1", "State": "available", "MapPublicIpOnLaunch": True, "AvailabilityZone": f"{REGION}a"}
        ]
    },
    "DescribeSecurityGroups": {"SecurityGroups": [{"GroupId": GROUPS[0], "VpcId": "vpc-1", "GroupName": "mine"}]},
    "RunInstances": {"Instances": [{"InstanceId": "i-1", "State": {"Name": "pending"}}]},
    "DescribeInstances": {
        "Reservations": [{"Instances": [{"InstanceId": "i-1", "PrivateIpAddress": "10.0.0.1", "State": {"Name": "running"}, "Tags": []}]}]
    },
    "CreateTags": {},
    "TerminateInstances": {},
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, dict[str, Any]]]:
    """What boto3 is asked for, by operation, while EC2 answers from ANSWERS."""
    made: list[tuple[str, dict[str, Any]]] = []

    def answer(_: Any, operation: str, parameters: dict[str, Any]) -> Any:
        made.append((operation, parameters))
        return ANSWERS[operation]

    monkeypatch.setattr("botocore.client.BaseClient._make_api_call", answer)
    monkeypatch.setattr("ray.autoscaler._private.aws.node_provider.TAG_BATCH_DELAY", 0)
    monkeypatch.setenv("HOME", str(tmp_path))  # for the key of SSH
    return made


def test_the_head_may_do_what_ray_does_there_and_no_more(calls: list[tuple[str, dict[str, Any]]]) -> None:
    """`ray up` as far as the instances, then the life of a worker as the head's autoscaler leads it."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(CLUSTER))
    validate_config(config)
    config = AWSNodeProvider.bootstrap_config(config)
    typed = {name for name, _ in calls}
    calls.clear()
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node in config["available_node_types"].items():
        tags = {"ray-node-kind": "worker", "ray-node-name": "ray", "ray-user-node-type": name, "ray-launch-config": "x"}
        provider.create_node(node["node_config"], tags, 1)
    assert provider.non_terminated_nodes({}) == ["i-1"]
    provider.set_node_tags("i-1", {"ray-node-status": "up-to-date"})
    assert provider.internal_ip("i-1") == "10.0.0.1"
    provider.terminate_nodes(["i-1"])

    made = {f"ec2:{name}" for name, _ in calls}
    assert actions(HEAD) == made | {"iam:PassRole", "ssm:GetParameters"}
    text = (ROOT / "docs" / "cluster.md").read_text()
    for name in typed:  # whoever types `ray up` needs these too
        assert f"`ec2:{name}`" in text

    launches = {p["InstanceType"]: p for name, p in calls if name == "RunInstances"}
    assert launches["m6i.4xlarge"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in launches["g5.2xlarge"]
    for launch in launches.values():
        assert launch["SecurityGroupIds"] == GROUPS
        (tags,) = launch["TagSpecifications"]
        assert {"Key": "ray-cluster-name", "Value": "dfdc-ray"} in tags["Tags"]
    workers = {node["node_config"]["InstanceType"] for name, node in config["available_node_types"].items() if name != "head"}
    for kind, launch in launches.items():
        facts = {"aws_RequestTag/ray-cluster-name": "dfdc-ray", "ec2_InstanceType": kind}
        assert allows(HEAD, "ec2:RunInstances", INSTANCE, **facts) == (kind in workers)
        assert not allows(HEAD, "ec2:RunInstances", INSTANCE, ec2_InstanceType=kind)
        role = launch["IamInstanceProfile"]["Name"]
        passed = allows(HEAD, "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/{role}", iam_PassedToService="ec2.amazonaws.com")
        assert passed == (kind in workers)
        parameter = launch["ImageId"].removeprefix("resolve:ssm:")
        assert allows(HEAD, "ssm:GetParameters", f"arn:aws:ssm:{REGION}::parameter{parameter}")


def test_the_head_touches_no_other_instance() -> None:
    for action in ("ec2:TerminateInstances", "ec2:CreateTags"):
        assert allows(HEAD, action, INSTANCE, **{"aws_ResourceTag/ray-cluster-name": "dfdc-ray"})
        assert not allows(HEAD, action, INSTANCE, **{"aws_ResourceTag/ray-cluster-name": "another"})
        assert not allows(HEAD, action, INSTANCE)
    assert set(re.findall(r"arn:aws:(?:ec2|ssm):([^:]*)", json.dumps(HEAD))) == {REGION}
