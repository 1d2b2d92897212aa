"""Put the score page on this machine, on Ray Serve.

    dfdc-ray serve --checkpoint out/train/best [--port 8000]

One replica holds the queue, the models and the results, and decodes in a process of its own (preprocess/supervise.py); Ray Serve watches
over it. Everything belongs to a private Ray session that ends with the command: uploads and results go with it.
"""

import fcntl
import ipaddress
import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType

import ray

from dfdc_ray import storage
from dfdc_ray.cluster import run as cluster
from dfdc_ray.config import ServeConfig
from dfdc_ray.console import console
from dfdc_ray.errors import UserError
from dfdc_ray.serve.score import load_predictor
from dfdc_ray.train.memory import ENVIRONMENT

try:
    from fastapi import FastAPI
    from ray import serve as ray_serve
    from ray.serve.exceptions import RayServeException

    from dfdc_ray.serve.listen import server_of
except ImportError as error:
    raise ImportError(f"{error}. The page needs the extra `serve`: pip install 'dfdc-ray[train,serve]'.") from error

APP = "dfdc-ray"
_END_S = 10.0  # for requests under way, when all ends
_UPLOADS = "dfdc-ray-serve-"  # begins the name of the folder for uploads


def serve(config: ServeConfig) -> None:
    """The command. Returns after Ctrl-C, SIGTERM, or the end of its terminal. UserError for what cannot be used, before Ray starts."""
    _check(config)
    load_predictor(*config.checkpoint, frames=config.frames)  # refuses here what the replica could only fail of
    config = replace(config, checkpoint=tuple(map(storage.absolute, config.checkpoint)))
    with uploads_folder() as folder:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the shell had it ignored, as it does in the background
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, _end)
        try:
            _start(config, folder)
            _announce(config)
            while True:
                time.sleep(3600)
        except (KeyboardInterrupt, SystemExit):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would leave Ray half way
            console.print("Stopping: uploads and results are deleted.")
        finally:
            _stop()


@contextmanager
def uploads_folder() -> Iterator[str]:
    """A folder for this user alone, locked while this process lives. Those of servers that were killed, whose locks went with them, go."""
    for left in Path(tempfile.gettempdir()).glob(f"{_UPLOADS}*"):
        if (lock := _lock(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    while True:
        with tempfile.TemporaryDirectory(prefix=_UPLOADS) as folder:
            if (lock := _lock(Path(folder))) is None:  # another server, which starts now, took it for one that was left
                continue
            try:
                yield folder
            finally:
                os.close(lock)
            return


def _lock(folder: Path) -> int | None:
    """A file descriptor that holds the lock of this user's folder; None where another process does, or there is no such folder."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_uid == os.geteuid() and folder.exists():
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _check(config: ServeConfig) -> None:
    if cluster.joined():
        raise UserError("RAY_ADDRESS is set, and `serve` works on this machine alone, in a Ray session of its own: unset RAY_ADDRESS.")
    for name, value in asdict(config).items():
        if isinstance(value, int | float) and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: must be above 0.")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will: connections that are closing do not count
            probe.bind(address)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot listen on {config.host}, port {config.port}: {why}. Take another --port or --host.") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address to listen on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _start(config: ServeConfig, folder: str) -> None:
    """The Ray session and in it the page. UserError if it does not come up."""
    cluster.connect()
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    deployed = ray_serve.deployment(
        num_replicas=1,
        ray_actor_options={
            "num_cpus": 1,
            "num_gpus": 1 if cluster.capacity("GPU") >= 1 else 0,
            "runtime_env": {"env_vars": ENVIRONMENT},
        },
        graceful_shutdown_timeout_s=2 * _END_S,
        health_check_timeout_s=60,
    )
    page = deployed(Page)
    quiet = {"enable_access_log": False, "log_level": "ERROR"}
    try:
        ray_serve.start(proxy_location="Disabled", logging_config=quiet)
        ray_serve.run(page.bind(config, folder), name=APP, route_prefix=None, logging_config=quiet)
    except RuntimeError as error:
        raise UserError(f"The page did not start: {str(error).strip().splitlines()[0]} (--debug shows more)") from error


class Page:
    """The replica. It listens itself, so that an upload is read as fast as it is written to the disk.

    Ray Serve's proxy takes in a request as fast as it comes, and hands it on as messages: of 20 uploads of 150 MB at once, 2.6 GB lay in
    its memory and the replica's.
    """

    def __init__(self, config: ServeConfig, folder: str) -> None:
        self.app = build_app(config, folder)
        self.server = server_of(self.app, host=config.host, port=config.port, end_s=int(_END_S))
        self.thread = threading.Thread(target=self.server.run, name="http", daemon=True)
        self.thread.start()
        while not self.server.started:
            self.check_health()
            time.sleep(0.05)

    def check_health(self) -> None:
        """For Ray Serve, which starts another replica where this raises."""
        if not self.thread.is_alive():
            raise RuntimeError("the HTTP server has ended")
        if not self.app.state.jobs.alive:
            raise RuntimeError("the worker has ended")

    def __del__(self) -> None:
        """For Ray Serve, at the end: uploads are broken off, files deleted, the decoding process ended."""
        self.server.should_exit = True
        self.thread.join(1.5 * _END_S)


def build_app(config: ServeConfig, folder: str) -> FastAPI:
    """The application, with its queue and models, in the process that calls this. folder: for the uploads; exists and is private."""
    import torch

    from dfdc_ray.serve.app import create_app
    from dfdc_ray.serve.examine import Examiner, card
    from dfdc_ray.serve.jobs import Jobs, Limits

    torch.set_num_threads(cluster.cores())  # Ray's default is one
    scorer, _, settings = load_predictor(*config.checkpoint, frames=config.frames)
    examiner = Examiner(
        scorer,
        settings,
        timeout_s=config.video_timeout_s,
        memory_bytes=config.video_memory_mb << 20,
        longest_s=config.max_seconds,
    )
    return create_app(
        Jobs(Path(folder), examiner, Limits(max_bytes=int(config.max_mb * 1e6))),
        card=card(scorer, settings) | {"max_seconds": config.max_seconds},
        close=examiner.close,
        hosts=hosts(config),
    )


def hosts(config: ServeConfig) -> tuple[str, ...] | None:
    """The names by which the page may be asked for; None: any, since those of an address that others reach are not known here."""
    from dfdc_ray.serve.app import LOOPBACK

    if config.name or is_loopback(config.host):
        return (*LOOPBACK, config.host, *(name.lower() for name in config.name))
    return None


def _announce(config: ServeConfig) -> None:
    host = f"[{config.host}]" if ":" in config.host else config.host
    console.print(f"The page: [bold]http://{host}:{config.port}/[/]   (its API: /docs; Ctrl-C ends it)", highlight=False, soft_wrap=True)
    if is_loopback(config.host):
        console.print("Only this machine can reach it, with everybody who works on it.", highlight=False, soft_wrap=True)
    else:
        console.print(
            f"[bold yellow]Warning:[/] it listens on {config.host}, and there is no authentication and no encryption: anyone who reaches "
            "this address can upload, and see how much others do. Put it behind a server that asks who they are, and give the name by "
            "which browsers ask for it (--name): without, other web sites can have their visitors' browsers use it.",
            highlight=False,
            soft_wrap=True,
        )
    console.file.flush()


def _stop() -> None:
    """The replica ends in good order, and with it its decoding process; Serve's own actors end with the session."""
    if ray.is_initialized():
        with suppress(RayServeException, ray.exceptions.RayError, TimeoutError):  # it may never have started
            ray_serve.delete(APP)
        ray.shutdown()
