"""What the bench commands can be told, as in dfdc_ray/config.py."""

from dataclasses import dataclass

from dfdc_ray.config import Uris


@dataclass(frozen=True, kw_only=True)
class BenchDetectorsConfig:
    """Measure face detectors: coverage, CPU time per frame.

    On one's own videos.
    """

    corpus: Uris
    """Folder, zip or s3:// prefix; may be given several times."""
    out: str
    """Folder for the result as JSON and Markdown."""
    frames: int = 32
    """Frames per video, evenly spread."""


@dataclass(frozen=True, kw_only=True)
class BenchPreprocessConfig:
    """Measure CPU seconds per video of preprocessing.

    Beside the usual loops, on one's own videos.
    """

    corpus: Uris
    """Folder, zip or s3:// prefix; may be given several times."""
    out: str
    """Folder for the result as JSON and Markdown."""
    frames: tuple[int, ...] = (10, 32)
    """Frames per video, evenly spread; each is measured."""
    real_multiplier: tuple[int, ...] = (1, 4)
    """Real videos give this many times the frames; each is measured."""
    units: int | None = None
    """Only the first so many families of each corpus; unset: all."""
    repeats: int = 3
    """Runs of each way, in turn; the table shows the median and the spread."""


@dataclass(frozen=True, kw_only=True)
class BenchBoxesConfig:
    """Measure face detectors against boxes marked by eye.

    Faces found, false boxes, CPU time per frame.
    """

    corpus: Uris
    """Folder, zip or s3:// prefix with the marked videos; may be given several times. NAME=URI names a corpus that the marks name so."""
    marks: str
    """JSON with the marked frames; tests/data/boxes.json is one."""
    out: str
    """Folder for the result as JSON and Markdown."""


@dataclass(frozen=True, kw_only=True)
class BenchTrainConfig:
    """Measure how fast training goes from face shards.

    Beside the same training on pictures that are in memory already.
    """

    faces: str
    """Output of preprocess or pack: folder or s3:// prefix."""
    out: str
    """Folder for the result as JSON and Markdown."""
    model: str = "resnet34"
    """Name in dfdc_ray.models."""
    image_size: int = 224
    """Side in pixels of the model's square input."""
    batch_size: int = 32
    steps: int = 20
    """Optimizer steps of each run."""
    repeats: int = 3
    """Runs of each way, in turn; the table shows the median and the spread."""
    loader_workers: int = 0
    """Processes that decode and augment, as of train."""
    gpu: bool = False
    """On the GPU, in bf16."""
    compile: bool = False
    """The model through torch.compile."""


@dataclass(frozen=True, kw_only=True)
class BenchServeConfig:
    """Measure a running `dfdc-ray serve` under many uploads.

    At once: seconds to the answer and to the verdict, memory. Starts nothing itself.
    """

    url: str
    """Where it is, such as http://127.0.0.1:8000."""
    video: str
    """The file to send."""
    out: str
    """Folder for the result as JSON and Markdown."""
    requests: int = 20
    parallel: int = 20
    """Uploads at a time."""
    timeout_s: float = 600.0
    """For all of it."""


@dataclass(frozen=True, kw_only=True)
class BenchScaleConfig:
    """Measure what preprocess costs besides its videos.

    Of a large corpus: plan, Ray, storage, a run with nothing to do.
    """

    index: str
    """What `dfdc-ray index` wrote; or a Parquet table with DFDC's columns video, label, original and part."""
    out: str
    """Folder or s3:// prefix that does not exist yet: for an output without real pictures, and the result as JSON and Markdown."""
    workers: int = 2
    """Ray actors. For more than there are cores, start a Ray with enough CPUs and set RAY_ADDRESS."""
    units: int | None = None
    """Only the first so many families; unset: all."""
    video_s: float = 0.0
    """Seconds to wait in place of the work on each video: with many workers this shows the driver at the rate of a real cluster."""
    bench: str | None = None
    """bench_preprocess.json of `dfdc-ray bench preprocess`: what a real unit takes, and so how many cores the driver can keep busy."""
    unit_cpu_seconds: float | None = None
    """The same as a number: CPU seconds of a real unit."""
