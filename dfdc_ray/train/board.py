"""Scalars for TensorBoard (`tensorboard --logdir OUT/tensorboard`)."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dfdc_ray import storage

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


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
