"""What is seen of a run while it goes on: a line every ten seconds; scalars for TensorBoard (`tensorboard --logdir OUT/tensorboard`)."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dfdc_ray import storage
from dfdc_ray.console import console, duration

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_LINE_EVERY_S = 10.0


class Board:
    """Writes under OUT/tensorboard. For an s3:// OUT the files are written locally and copied up by `upload`. OUT None: writes nothing."""

    def __init__(self, out: str | None, step: int) -> None:
        self.folder = storage.join(out, "tensorboard") if out else None
        self.step = step  # where the run goes on: later scalars of an interrupted run are superseded
        self.writer: SummaryWriter | None = None

    def __enter__(self) -> "Board":
        if self.folder:
            from torch.utils.tensorboard import SummaryWriter

            local = tempfile.mkdtemp(prefix="tensorboard-") if storage.is_s3(self.folder) else storage.absolute(self.folder)
            self.writer = SummaryWriter(local, purge_step=self.step)
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer:
            self.writer.close()
            self.upload()

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Record what is defined (not None)."""
        if self.writer:
            for name, value in values.items():
                if value is not None:
                    self.writer.add_scalar(name, value, step)

    def upload(self) -> None:
        """Make what was written so far visible in OUT."""
        if self.writer and self.folder:
            self.writer.flush()
            if storage.is_s3(self.folder):
                for file in Path(self.writer.log_dir).iterdir():
                    storage.write_bytes(storage.join(self.folder, file.name), file.read_bytes())


class Meter:
    """One line every ten seconds: step, rate, loss, share of the time spent waiting for data, time left."""

    def __init__(self, epochs: int, steps: int, step: int) -> None:
        self.epochs, self.steps, self.first = epochs, steps, step
        self.began = self.last = time.monotonic()
        self.images, self.waited = 0, 0.0
        self.scalars: dict[str, float] = {}

    def due(self, wait: float, images: int) -> bool:
        """Count a step; whether it is time for a line."""
        self.images += images
        self.waited += wait
        passed = time.monotonic() - self.last
        if passed < _LINE_EVERY_S:
            return False
        self.scalars = {"train/images_per_s": self.images / passed, "train/data_wait": self.waited / passed}
        self.images, self.waited, self.last = 0, 0.0, time.monotonic()
        return True

    def line(self, epoch: int, step: int, loss: float) -> None:
        left = (time.monotonic() - self.began) / (step - self.first) * (self.steps - step)
        console.print(
            f"epoch {epoch + 1} of {self.epochs}, step {step} of {self.steps}, {self.scalars['train/images_per_s']:.1f} images/s, "
            f"loss {loss:.4f}, {self.scalars['train/data_wait']:.0%} of the time waiting for data, {duration(left)} left",
            highlight=False,
            soft_wrap=True,
        )
