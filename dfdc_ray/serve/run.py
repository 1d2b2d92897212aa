"""Put the score page on this machine, on Ray Serve.

    dfdc-ray serve --checkpoint out/train/best [--port 8000]

One replica holds the queue, the models and the results; it decodes in a process of its own (preprocess/supervise.py). Everything belongs to
a private Ray session that ends with the command: uploads, results and what is in memory go with it.
"""

import ipaddress
import logging
import os
import signal
import socket
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from dfdc_ray import storage
from dfdc_ray.cluster import run as cluster
from dfdc_ray.config import ServeConfig
from dfdc_ray.console import console
from dfdc_ray.errors import UserError
from dfdc_ray.serve.score import load_predictor

try:
    from fastapi import FastAPI
    from ray import serve as ray_serve
except ImportError as error:
    raise ImportError(f"{error}. The page needs the extra `serve`: pip install 'dfdc-ray[train,serve]'.") from error

APP = "dfdc-ray"
_ONGOING = 200  # requests at a time: uploads that are slow must not keep others from asking


def serve(config: ServeConfig) -> None:
    """The command. Returns after Ctrl-C or SIGTERM. UserError for what cannot be used, before Ray starts."""
    _check(config)
    load_predictor(*config.checkpoint, frames=config.frames)  # refuses here what the replica could only fail of
    config = replace(config, checkpoint=tuple(map(storage.absolute, config.checkpoint)))
    with tempfile.TemporaryDirectory(prefix="dfdc-ray-serve-") as folder:  # for this user alone
        try:
            _start(config, folder)
            _announce(config)
            while True:
                time.sleep(3600)
        except (KeyboardInterrupt, SystemExit):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would leave Ray half way
            console.print("\nStopping: uploads and results are deleted.")
        finally:
            _stop()


def _check(config: ServeConfig) -> None:
    if cluster.joined():
        raise UserError("RAY_ADDRESS is set, and `serve` works on this machine alone, in a Ray session of its own: unset RAY_ADDRESS.")
    for name in ("port", "frames", "max_mb", "max_seconds", "max_waiting", "keep_minutes", "keep_results", "video_timeout_s"):
        if getattr(config, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name):g}: must be above 0.")
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
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cluster.connect()
    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet = {"enable_access_log": False, "log_level": "ERROR"}  # its lines would hold the ids by which results can be seen
    gpus = 1 if cluster.capacity("GPU") >= 1 else 0

    def build() -> FastAPI:
        return build_app(config, folder)

    page = ray_serve.deployment(
        ray_serve.ingress(build)(),
        name="page",
        num_replicas=1,
        max_ongoing_requests=_ONGOING,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        graceful_shutdown_timeout_s=15,
        health_check_timeout_s=60,
        logging_config=quiet,
    )
    try:
        ray_serve.start(http_options={"host": config.host, "port": config.port}, logging_config=quiet)
        ray_serve.run(page.bind(), name=APP, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        raise UserError(f"The page did not start: {str(error).strip().splitlines()[0]} (--debug shows more)") from error


def build_app(config: ServeConfig, folder: str) -> FastAPI:
    """The application, with its queue and models, in the process that calls this. folder: for the uploads; exists and is private."""
    import torch

    from dfdc_ray.serve.app import LOOPBACK, create_app
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
    limits = Limits(
        max_bytes=int(config.max_mb * 1e6),
        waiting=config.max_waiting,
        keep_s=60 * config.keep_minutes,
        keep=config.keep_results,
    )
    return create_app(
        Jobs(Path(folder), examiner, limits),
        card=card(scorer, settings) | {"max_seconds": config.max_seconds},
        report=examiner.report,
        close=examiner.close,
        hosts=(*LOOPBACK, config.host) if is_loopback(config.host) else None,
    )


def _announce(config: ServeConfig) -> None:
    host = f"[{config.host}]" if ":" in config.host else config.host
    console.print(f"The page: [bold]http://{host}:{config.port}/[/]   (its API: /docs; Ctrl-C ends it)", highlight=False, soft_wrap=True)
    if is_loopback(config.host):
        console.print("Only this machine can reach it, with everybody who works on it.", highlight=False, soft_wrap=True)
    else:
        console.print(
            f"[bold yellow]Warning:[/] it listens on {config.host}, and there is no authentication and no encryption: anyone who reaches "
            "this address can upload, and see how much others do. Put it behind a server that asks who they are.",
            highlight=False,
            soft_wrap=True,
        )


def _stop() -> None:
    import ray

    if ray.is_initialized():
        ray_serve.shutdown()
        ray.shutdown()
