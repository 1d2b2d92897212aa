"""The Ray session: join the cluster that RAY_ADDRESS names (as `ray job submit` sets it), else start a private one on this machine."""

import logging
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType

import ray

from dfdc_ray.console import console
from dfdc_ray.errors import UserError


@dataclass(frozen=True)
class RayStatus:
    """What `doctor` wants to know: is a cluster named and reachable, and which Ray it runs (None if there is none)."""

    reachable: bool
    detail: str
    version: str | None


def connect() -> None:
    """Join or start Ray once per process.

    A private session offers one CPU more than the machine has: Ray hangs without a word when actors or Train workers hold every CPU
    that it could use for its own tasks. Raises UserError when RAY_ADDRESS names a cluster that does not answer or runs another Ray.
    """
    if ray.is_initialized():
        return
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address="auto", logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError) as error:
            raise UserError(
                f"No usable Ray cluster at RAY_ADDRESS={address}: {error}\nStart it, or unset RAY_ADDRESS to run on this machine."
            ) from error
    else:
        # It warns of what is right here: a private session takes tokens unless RAY_AUTH_MODE says otherwise.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers unless the user says so
        ray.init(
            address="local",
            num_cpus=cores() + 1,
            include_dashboard=False,
            object_store_memory=256 * 2**20,  # for first weights and, on clusters, the batches of --ingest-actors
            logging_level=logging.WARNING,
            _system_config={"task_events_report_interval_ms": 0, "enable_metrics_collection": False},  # for a dashboard: 2 % of a core
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM as SystemExit. Ray's own handler, which this replaces, aborts the process 3 s later, whatever is still being put in order."""
    raise SystemExit(128 + number)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def joined() -> bool:
    """Whether the session is a cluster's (which may grow) rather than a private one."""
    return "RAY_ADDRESS" in os.environ


def capacity(resource: str) -> float:
    """How much of a resource (`CPU`, `GPU`, a custom one) the cluster has now."""
    return float(ray.cluster_resources().get(resource, 0.0))


def require(*, cpus: float, gpus: float = 0, custom: Mapping[str, float] | None = None) -> None:
    """Refuse a request that this session cannot meet, instead of hanging.

    A joined cluster may still grow by autoscaling, so there it is a warning.
    """
    wanted = {"CPU": cpus, "GPU": gpus} | dict(custom or {})
    short = [f"{need:g} {name} (there are {capacity(name):g})" for name, need in wanted.items() if need > capacity(name)]
    if not short:
        return
    message = "Ray cannot start this: it asks for " + " and ".join(short)
    if not joined():
        raise UserError(message + ". Ask for fewer workers or fewer CPUs per worker.")
    console.print(f"[yellow]{message}. It waits until the cluster has grown; without autoscaling it waits for ever.[/]")


def start_actors_together(seconds: int) -> None:
    """Have Ray Data give out work only when all actors of a pool have started, for which they get so long."""
    from ray.data import DataContext

    DataContext.get_current().wait_for_min_actors_s = seconds


def status() -> RayStatus:
    """Look for the cluster that RAY_ADDRESS names, without starting anything."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return RayStatus(reachable=False, detail="RAY_ADDRESS is not set: commands start a private session on this machine", version=None)
    try:
        connect()
        version = ray.get(ray.remote(num_cpus=0)(lambda: ray.__version__).remote(), timeout=60)
    except (UserError, ray.exceptions.RayError) as error:
        return RayStatus(reachable=False, detail=str(error).splitlines()[0], version=None)
    return RayStatus(
        reachable=True, detail=f"{address}, {len(ray.nodes())} nodes, {capacity('CPU'):g} CPUs, {capacity('GPU'):g} GPUs", version=version
    )
