"""The score page served by uvicorn in a thread, without Ray."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from fastapi import FastAPI

from dfdc_ray.serve.listen import server_of


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The application's URL while the block runs; then it is shut down as at its end."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = server_of(app, end_s=5)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            end = time.monotonic() + 30
            while not server.started:
                assert time.monotonic() < end, "the page does not start"
                time.sleep(0.01)
            yield url
        finally:
            server.should_exit = True
            thread.join(30)


def verdict(url: str, video_id: str, *, timeout_s: float = 120) -> dict:
    """The last status of a video: done or failed."""
    end = time.monotonic() + timeout_s
    while (status := requests.get(f"{url}/api/videos/{video_id}", timeout=20).json())["state"] not in ("done", "failed"):
        assert time.monotonic() < end, status
        time.sleep(0.05)
    return status
