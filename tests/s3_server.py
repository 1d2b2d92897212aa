"""An S3 server for tests: Ceph's RADOS Gateway where its Debian packages are installed, else moto's server, which checks signatures too.

    apt-get install --no-install-recommends radosgw ceph-mon ceph-osd

Either lives in memory, listens on 127.0.0.1 only, and ends with the process that started it, even if that is killed.
The fixture `s3` is in conftest.py.
"""

import functools
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from dfdc_ray import s3, storage

BUCKET = "dfdc-ray-tests"
REGION = "us-east-1"
START_S = 60.0  # it takes 3 s on two idle cores
_ROLE = "session"
_MOTO = "moto server (no radosgw here)"
NOT_OURS = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE")
# One monitor, one OSD, one gateway, nothing kept twice. Monitors gather changes for a second by default, and each pool is a change.
_CEPH_CONF = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth allow insecure global id reclaim = false
keyring = {folder}/keyring
admin socket =
run dir = {folder}
log file = {folder}/$name.log
crash dir = {folder}
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
paxos propose interval = 0.05
paxos min wait = 0.01
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 8589934592
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 0
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw thread pool size = 32
rgw s3 auth use sts = true
rgw s3 auth order = local, sts
rgw sts key = {sts_key}
rgw sts min session duration = 1
"""


@dataclass(frozen=True)
class Server:
    """A running server with one user; `name` as it is printed, such as `RADOS Gateway 16.2.15`."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str

    @property
    def is_moto(self) -> bool:
        """Whether it is the fallback."""
        return self.name == _MOTO

    @property
    def variables(self) -> dict[str, str]:
        """The AWS environment variables that lead to it, and nothing of this machine's own AWS files and roles."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def environment(self, **changes: str) -> dict[str, str]:
        """A whole environment for a subprocess, with `changes`."""
        return {k: v for k, v in os.environ.items() if k not in NOT_OURS} | self.variables | changes

    def client(self, service: str = "s3") -> Any:
        """A boto3 client, whatever the environment says."""
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            # S3 gives no session of less than 15 minutes, and boto3 asks for none.
            config=Config(s3={"addressing_style": "path"}, parameter_validation=service != "sts"),
        )

    def session(self, *, seconds: int) -> dict[str, str] | None:
        """AWS environment variables of a session that expires so soon; None from moto, where none ever does."""
        if self.is_moto:
            return None
        arn = f"arn:aws:iam:::role/{_ROLE}"
        session = self.client("sts").assume_role(RoleArn=arn, RoleSessionName="test", DurationSeconds=seconds)["Credentials"]
        return {
            "AWS_ACCESS_KEY_ID": session["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": session["SecretAccessKey"],
            "AWS_SESSION_TOKEN": session["SessionToken"],
        }


@dataclass(frozen=True)
class S3:
    """What a test gets: an empty prefix of its own, and how to reach it. This process's environment leads there too while the test runs."""

    uri: str
    server: Server

    @property
    def endpoint(self) -> str:
        """http://127.0.0.1:PORT"""
        return self.server.endpoint

    @property
    def environment(self) -> dict[str, str]:
        """A whole environment for a subprocess."""
        return self.server.environment()


@functools.cache
def installed() -> str:
    """The name of the server that will be used: the better one of those that are there."""
    if not all(shutil.which(name) for name in ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "setpriv")):
        return _MOTO
    said = subprocess.run(["radosgw", "--version"], capture_output=True, text=True, timeout=START_S, check=True).stdout
    version = re.search(r"version (\S+)", said)
    return f"RADOS Gateway {version[1] if version else 'of unknown version'}"


@contextmanager
def running() -> Iterator[Server]:
    """The better server of those that are installed. RuntimeError with the end of its log if it does not start."""
    # A short path: Ceph keeps sockets there, whose paths may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="dfdc-s3-", dir="/tmp"))
    started: list[subprocess.Popen] = []
    try:
        yield _moto(folder, started) if installed() == _MOTO else _ceph(folder, started)
    finally:
        for process in reversed(started):
            process.kill()  # nothing of it is to be kept
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def forget_connections() -> None:
    """Make dfdc_ray look at the AWS environment again in this process."""
    s3.forget()


def assert_no_secret(server: Server, said: str, uri: str, *folders: Path) -> None:
    """Neither key in what was said, in any object below the uri, or in any file or name below Ray's folders, whose logs must be there."""
    entries = [entry for entry in storage.list_dir(uri, recursive=True) if not entry.is_dir]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(entries) > 30
    assert any(("worker" in path.name and path.suffix == ".log") or path.suffix in (".out", ".err") for path in files)
    for key in (server.access_key, server.secret_key):
        assert key not in said
        assert [entry.uri for entry in entries if key in entry.uri or key.encode() in storage.read_bytes(entry.uri)] == []
        assert [path for path in files if key in str(path) or key.encode() in path.read_bytes()] == []


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _ceph(folder: Path, started: list[subprocess.Popen]) -> Server:
    port, mon_port, fsid = free_port(), free_port(), str(uuid.uuid4())
    conf, keyring, monmap = folder / "ceph.conf", folder / "keyring", folder / "monmap"
    conf.write_text(_CEPH_CONF.format(folder=folder, fsid=fsid, port=port, mon_port=mon_port, sts_key=secrets.token_hex(8)))
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    run = functools.partial(subprocess.run, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=START_S)

    def daemon(program: str, *arguments: str) -> subprocess.Popen:
        log = open(folder / f"{program}.out", "wb")  # noqa: SIM115 (the daemon's)
        with log:
            command = ["setpriv", "--pdeathsig", "KILL", program, "-f", "-c", str(conf), *arguments]
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        return started[-1]

    server = Server(installed(), f"http://127.0.0.1:{port}", "dfdcraytest" + secrets.token_hex(4).upper(), secrets.token_hex(20))
    try:
        run(["ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"])
        for name, caps in {
            "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
            "client.rgw": {"mon": "allow rw", "osd": "allow rwx"},
            "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
        }.items():
            run(["ceph-authtool", keyring, "--gen-key", "-n", name, *(word for cap in caps.items() for word in ("--cap", *cap))])
        run(["monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", monmap])
        run(["ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring, "-c", conf])
        daemon("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        run(["ceph", "-c", conf, "--connect-timeout", str(int(START_S)), "osd", "new", osd, "0"])
        run(["ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, "-c", conf])
        daemon("ceph-osd", "-i", "0")
        gateway = daemon("radosgw", "-n", "client.rgw")
        _wait_for(port, gateway)
        keys = ["--access-key", server.access_key, "--secret-key", server.secret_key]
        admin = ["radosgw-admin", "-c", conf]
        run([*admin, "user", "create", "--uid", "test", "--display-name", "test", *keys])
        may_assume = _policy("sts:AssumeRole", Principal={"AWS": ["arn:aws:iam:::user/test"]})
        run([*admin, "role", "create", "--role-name", _ROLE, "--assume-role-policy-doc", may_assume])
        may_all = _policy("s3:*", Resource="arn:aws:s3:::*")
        run([*admin, "role-policy", "put", "--role-name", _ROLE, "--policy-name", "all", "--policy-doc", may_all])
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stdout", None) or b"").decode(errors="replace")
        logs = [f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in sorted(folder.glob("*.out"))]
        raise RuntimeError("\n".join([f"the RADOS Gateway does not start: {error}", said, *logs])) from error
    return server


def _moto(folder: Path, started: list[subprocess.Popen]) -> Server:
    port = free_port()
    program = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"
    # Authentication begins after the three requests that make the user.
    environment = os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": "3", "MOTO_IAM_LOAD_MANAGED_POLICIES": "false"}
    with open(folder / "moto.out", "wb") as log:
        command = [*(["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []), sys.executable, "-c", program, str(port)]
        started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    try:
        _wait_for(port, started[-1])
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n{(folder / 'moto.out').read_text(errors='replace')[-2000:]}") from error
    iam = Server("", f"http://127.0.0.1:{port}", "none", "none").client("iam")
    iam.create_user(UserName="test")
    iam.put_user_policy(UserName="test", PolicyName="all", PolicyDocument=_policy("*", Resource="*"))
    key = iam.create_access_key(UserName="test")["AccessKey"]
    return Server(_MOTO, f"http://127.0.0.1:{port}", key["AccessKeyId"], key["SecretAccessKey"])


def _policy(action: str, **of: Any) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": [action], **of}]})


def _wait_for(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(
        f"nothing listens on port {port}" + (f" and the server exited with {process.returncode}" if process.returncode else "")
    )
