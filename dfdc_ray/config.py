"""What each command can be told: one frozen dataclass per command, which tyro turns into its options."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

SamplingMethod = Literal["spread", "centre", "per_second", "clips"]
Balance = Literal["frames", "sample", "groups", "none"]
Objective = Literal["bce", "l2", "triplet", "sync"]
Judged = Literal["train", "validation", "test", "all"]
Uris = Annotated[tuple[str, ...], tyro.conf.arg(metavar="URI ...")]
DetectorName = Literal["centerface", "ssd", "ssd-stock", "opencv"]


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """List the videos of one or more corpora, as Parquet.

    Prints what was found, so that it can be seen before anything runs.
    """

    corpus: Uris
    """Folder, zip or s3:// prefix; may be given several times. NAME=URI names the corpus, else its folder's name is used."""
    out: str
    """Parquet file to write."""


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Turn every video into face crops in Parquet, on Ray.

    Run it again after any interruption: finished work is kept.
    """

    corpus: Uris
    """Folder, zip or s3:// prefix; may be given several times. NAME=URI names the corpus, else its folder's name is used."""
    out: str
    """Folder or s3:// prefix for shards, receipts and the ledger."""
    sampling: SamplingMethod = "spread"
    """spread: evenly over the video; centre: consecutive frames around the middle; per_second: this many for each second;
    clips: runs of frames, in each of which a face is cut out by one steady rectangle, for models that look at time."""
    frames: int = 32
    """Frames per video (per second of video with per_second, per clip with clips)."""
    clips: int | None = None
    """With --sampling clips: how many of a video (unset: 4)."""
    stride: int | None = None
    """With --sampling clips: every so many-th frame of the video (unset: every one)."""
    real_multiplier: int = 4
    """Real videos give this many times the frames (or clips), to balance the classes (1 turns it off)."""
    detector: DetectorName = "centerface"
    """Face detector. docs/benchmarks.md has the table that chose the default."""
    detector_threshold: float | None = None
    """Smallest score that counts as a face; unset: the detector's own default (centerface: 0.5)."""
    detector_long_side: int | None = None
    """Frames are scaled down to this long side in pixels before detection; unset: the detector's own default (centerface: 640)."""
    crop: Literal["face", "frame"] = "face"
    """face: crops with margin; frame: whole frames, without detection."""
    margin: float = 1 / 3
    """Margin around the face box on each side, as a share of the box (selimsef's DFDC solution used a third)."""
    max_side: int | None = None
    """Pictures larger than this many pixels are scaled down, smaller ones kept as they are; unset: 320 for faces, 640 for whole frames."""
    image_format: Literal["jpeg", "png"] = "jpeg"
    """jpeg: quality 95, 4:4:4; png: lossless."""
    sound: bool = False
    """Keep the 0.2 s of sound around each frame too, 6 kB each, for models that listen (docs/models.md)."""
    retry: Annotated[tuple[Literal["error", "poison", "no_face", "missing"], ...], tyro.conf.arg(metavar="STATUS ...")] = ()
    """Do units again that hold videos which ended so: error, poison, no_face or missing, several after each other or with commas."""
    max_error_share: float = 0.01
    """Exit code 1, when all is done and published, if a larger share of the videos ended as error or poison (missing ones left out)."""
    workers: int | None = None
    """Ray actors; unset: one for every CPU (of a cluster: less one, which Ray needs itself)."""
    resource: str | None = None
    """Custom Ray resource of which each actor asks for one (`preprocess` with cluster.yaml, so that GPU nodes stay free)."""
    video_timeout_s: float = 300.0
    """A video that takes longer is stopped, tried once more, then recorded as poison; if reading it takes longer, it is not done."""
    video_memory_mb: int = 4096
    """Memory that the process decoding a video may allocate, in MiB."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Turn face crops that are there already into shards.

    From Parquet, a CSV of paths, or folders real/ and fake/; the shards are like those of preprocess. Labels are REAL and FAKE, or numbers:
    0 is real and 1 is fake, unless the Parquet names them otherwise (ClassLabel of Hugging Face).
    """

    crops: Uris
    """A .parquet or .csv file, or a folder with real/ and fake/; local or s3://; may be given several times."""
    out: str
    """Folder or s3:// prefix for the shards; `train`, `evaluate` and `pack` take it as their --faces."""
    corpus: str = "crops"
    """Name of the corpus: the first part of every video_id."""
    margin: float | None = None
    """Margin with which the crops were cut, as of preprocess; unset: it is not known, so `predict` cannot cut a video's faces alike."""
    landmarks: bool = False
    """Find eyes, nose and mouth in each crop with CenterFace, which `train --self-blend` wants; most of the time goes there."""
    max_error_share: float = 0.01
    """Exit code 1, when all the rest is written, if a larger share of the pictures was absent or damaged."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Say what preprocessing will take, before it runs.

    Counts and bytes; with a bench file hours, storage, requests and cost.
    """

    corpus: Uris = ()
    """Folder, zip or s3:// prefix; may be given several times. NAME=URI names the corpus, else its folder's name is used."""
    index: str | None = None
    """Instead of --corpus: what `dfdc-ray index` wrote."""
    vcpus: int
    """That will work at a time."""
    bench: str | None = None
    """bench_preprocess.json of `dfdc-ray bench preprocess`, run on such a machine and on such videos."""
    frames: int = 32
    """Frames per video, as of preprocess."""
    real_multiplier: int = 4
    """As of preprocess."""
    efficiency: float = 0.8
    """Share of the vCPUs' time that goes into videos; the rest is waiting for storage, the last units, and nodes that come and go."""
    price: float | None = None
    """USD for one vCPU for an hour; without it no cost is shown."""


@dataclass(frozen=True, kw_only=True)
class CoverageConfig:
    """Make the coverage report of a preprocess output again.

    Faces found by part, label and method, errors, and the worst cases.
    """

    faces: str
    """Output of preprocess: folder or s3:// prefix. The report is written into it as coverage.html."""


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Shuffle faces into a few large shards for training.

    On Ray. Run it again after any interruption.
    """

    faces: str
    """Output of preprocess: folder or s3:// prefix."""
    out: str
    """Folder or s3:// prefix for the shards; `train` and `evaluate` take it as their --faces."""
    seed: int = 0
    """Of the shuffling."""
    shard_mb: float = 256.0
    """Size of a shard in MB, about: 100 to 500 suits S3."""
    row_group_mb: float = 16.0
    """Size of a row group in MB, about: what training reads at a time."""
    workers: int | None = None
    """Ray tasks at a time; unset: one for every CPU less one."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a detector on face shards, with Ray Train.

    Run the same command again to resume.
    """

    faces: str
    """Output of preprocess or pack: folder or s3:// prefix."""
    out: str
    """Folder or s3:// prefix for checkpoints and logs."""
    split: str = "hash:0"
    """Split rule by group. hash:SEED (70/15/15 %), or parts:TRAIN/VALIDATION/TEST such as parts:0-34/35-39/40-49."""
    model: str = "resnet34"
    """Name in dfdc_ray.models."""
    weights: str = "imagenet"
    """imagenet or kinetics (fetched by torchvision), none (from scratch), or a state dict's file or s3:// URI (.safetensors or .pth).
    An earlier training's is its best/model.safetensors."""
    objective: Objective = "bce"
    """bce: binary cross-entropy; l2: squared error on the sigmoid's output, as in the founding report;
    triplet: features whose distances tell the classes apart, with a linear layer on them (Bonettini et al. 2020); sync, for av_sync:
    which sound of a real clip goes with which picture (after Chung and Zisserman 2016), with a small network on top that tells fakes."""
    balance: Balance = "frames"
    """frames: use the extra frames of real videos; sample: draw both classes equally often; groups: also every group; none: core frames."""
    self_blend: float = 0.0
    """Share of the drawn reals of which fakes are made by blending them with themselves (Shiohara and Yamasaki 2022); wants landmarks."""
    stabilise: bool = False
    """Lay the frames of a clip over its middle one before anything else, in training as in scoring; for models that look at clips."""
    cutmix: float = 0.0
    """Share of the steps in which a part of each picture or clip comes from another one, and its label with it (Yun et al. 2019)."""
    groups: int | None = None
    """Train on only so many groups of the training split, the same whatever the seed: for a learning curve. Unset: all."""
    epochs: int = 5
    """Passes over the training samples."""
    batch_size: int = 32
    """Samples per step over all workers together."""
    learning_rate: float = 3e-4
    """The highest: it rises to it over the first twentieth of the steps, then falls to 0 along a cosine."""
    weight_decay: float = 1e-2
    """Of AdamW, for all weights but biases and normalisation."""
    image_size: int = 224
    """Side in pixels of the model's square input."""
    seed: int = 0
    """Of the order, the augmentation and the first weights."""
    workers: int = 1
    """Ray Train workers (DDP processes)."""
    gpu: bool = False
    """One GPU per worker (nccl, bf16); otherwise CPU (gloo)."""
    cpus_per_worker: int = 1
    """CPUs, and so threads, per worker."""
    loader_workers: int | None = None
    """Processes per worker that decode and augment; 0: the training process does. By default --cpus-per-worker with --gpu, else 0."""
    ingest_actors: int = 0
    """Instead of them, on a cluster: Ray Data actors per worker, on nodes with torch and CPUs to spare, beside those with GPUs."""
    checkpoint_minutes: float = 15.0
    """A checkpoint is also written this often within an epoch."""
    cache: str | None = None
    """Folder on each node's own disk into which the shards that are needed are copied once (for --faces on S3)."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Judge a checkpoint on a split, beside the baselines.

    Metrics by frame and by video, as a page, JSON, Markdown and pictures.
    """

    faces: str
    """Output of preprocess or pack: folder or s3:// prefix."""
    checkpoint: tyro.conf.UseAppendAction[tuple[str, ...]]
    """Required. Checkpoint folder (the train output's `best`), local or s3://; of several (--checkpoint A --checkpoint B) the mean of
    logits."""
    out: str
    """Folder for report.html, report.json, report.md and the pictures."""
    split: Judged = "test"
    """Which split, by the rule that the checkpoint records; all: every labelled video, of a corpus that was not trained on."""
    robustness: bool = False
    """Judge the same faces again after JPEG, H.264, blur, noise and other changes; takes ten times as long."""
    training_faces: str | None = None
    """The faces that the checkpoint was trained from: look in them for near-duplicates of those that are judged. Reads most of them."""
    batch_size: int = 64
    cache: str | None = None
    """Folder on this machine's disk into which the shards that are needed are copied once (for --faces on S3)."""


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """Make a checkpoint's scores of videos probabilities.

    By what is best on its validation videos; kept in the checkpoint folder.
    """

    faces: str
    """Output of preprocess or pack that it was trained from: folder or s3:// prefix."""
    checkpoint: str
    """Checkpoint folder (the train output's `best`), local or s3://."""
    cache: str | None = None
    """Folder on this machine's disk into which the shards that are needed are copied once (for --faces on S3)."""


@dataclass(frozen=True, kw_only=True)
class CombineConfig:
    """Make one checkpoint of several.

    By the mean of their logits, or a logistic combination fitted on validation.
    """

    checkpoint: tyro.conf.UseAppendAction[tuple[str, ...]]
    """Required, several times. Checkpoint folder, local or s3://."""
    out: str
    """Checkpoint folder to write."""
    by: Literal["mean", "logistic"] = "mean"
    """mean: of the logits; logistic: weights and bias that suit the validation videos best (evaluate/combine.py has the rule)."""
    faces: str | None = None
    """For logistic: output of preprocess or pack that they were trained from."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Score video files, with the evidence shown.

    How likely each is a fake, by frame and by face. A score is evidence, not proof.
    """

    videos: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="VIDEO ...")]]
    """Required. Video files, or s3:// URIs."""
    checkpoint: tyro.conf.UseAppendAction[tuple[str, ...]]
    """Required. Checkpoint folder (the train output's `best`), local or s3://; of several (--checkpoint A --checkpoint B) the mean of
    logits."""
    frames: int = 32
    """Frames per video, evenly spread; of a model that looks at clips, in clips as long as those of its training."""
    maps: str | None = None
    """Folder for a picture of each video that shows what the model looked at: its attention, or a clip's differences and colours."""
    report: str | None = None
    """Folder for a page of each video to read or print: verdict, timeline, faces with heat maps, the model's card."""
    json: bool = False
    """Print JSON."""
    csv: bool = False
    """Print Kaggle's CSV: filename,label (label: the score, a probability of fake once the checkpoint is calibrated)."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve a page that scores videos, and its HTTP API.

    Drop a video, see its score and the evidence. Runs until Ctrl-C, on this machine and for it alone unless told otherwise.
    """

    checkpoint: tyro.conf.UseAppendAction[tuple[str, ...]]
    """Required. Checkpoint folder (the train output's `best`), local or s3://; of several (--checkpoint A --checkpoint B) the mean of
    logits."""
    host: str = "127.0.0.1"
    """Address to listen on. With any but loopback everybody who reaches it can upload: there is no authentication."""
    name: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Host name by which browsers ask for the page, where that is another: of a server in front of it. (--name A --name B)"""
    port: int = 8000
    """Port to listen on."""
    frames: int = 32
    """Frames per video, evenly spread; of a model that looks at clips, in clips as long as those of its training."""
    max_mb: float = 200.0
    """Largest file, in MB."""
    max_seconds: float = 600.0
    """Longest video."""
    video_timeout_s: float = 300.0
    """A video whose decoding takes longer is stopped, and the video refused."""
    video_memory_mb: int = 4096
    """Memory that the process decoding a video may allocate, in MiB."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Check whether this machine is fit.

    Versions, weights, Ray, storage, GPU, disk. Exit code 1 if something required fails.
    """

    out: str = "out"
    """Folder or s3:// prefix whose writability and free space are checked."""
