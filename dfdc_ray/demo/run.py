"""The whole way in miniature, by the same commands that a real corpus takes.

dfdc-ray demo --out out/demo        (or `make demo`)
"""

import time
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from dfdc_ray.config import EvaluateConfig, IndexConfig, PredictConfig, PreprocessConfig, TrainConfig
from dfdc_ray.console import console, duration
from dfdc_ray.corpus.index import index
from dfdc_ray.demo.config import DemoConfig, DemoCorpusConfig
from dfdc_ray.demo.corpus import demo_corpus, demo_split
from dfdc_ray.evaluate.run import evaluate
from dfdc_ray.preprocess.run import preprocess
from dfdc_ray.serve.score import predict
from dfdc_ray.train.run import train

FAMILIES = 48


def demo(config: DemoConfig) -> None:
    """The `demo` command. Run again, it goes on where it was."""
    out = Path(config.out).absolute()
    corpus, faces, run, report = out / "corpus", out / "faces", out / "train", out / "report"
    best = str(run / "best")
    unseen = corpus / "test_videos"

    def unseen_video() -> None:
        predict(PredictConfig(videos=(str(sorted(unseen.glob("*.mp4"))[0]),), checkpoint=(best,), frames=16))

    steps: list[tuple[str, Callable[[], None]]] = [
        ("generate a corpus", lambda: demo_corpus(DemoCorpusConfig(out=str(corpus), families=FAMILIES))),
        ("index", lambda: index(IndexConfig(corpus=(str(corpus),), out=str(out / "index.parquet")))),
        (
            "preprocess",
            lambda: preprocess(PreprocessConfig(corpus=(str(corpus),), out=str(faces), frames=8, detector_long_side=320, margin=0.1)),
        ),
        (
            "train",
            lambda: train(
                TrainConfig(
                    faces=str(faces),
                    out=str(run),
                    split=demo_split(FAMILIES),
                    weights="none",  # ImageNet's would need the network
                    image_size=64,
                    epochs=4,
                    batch_size=16,
                    learning_rate=1e-3,
                    cpus_per_worker=2,
                )
            ),
        ),
        ("evaluate", lambda: evaluate(EvaluateConfig(faces=str(faces), checkpoint=(best,), out=str(report)))),
        ("score an unseen video", unseen_video),
    ]
    times = Table(title="demo")
    times.add_column("step")
    times.add_column("time", justify="right")
    begin = time.monotonic()
    for name, step in steps:
        console.rule(name)
        start = time.monotonic()
        step()
        times.add_row(name, duration(time.monotonic() - start))
    times.add_row("all", duration(time.monotonic() - begin))
    console.rule("done")
    console.print(times)
    console.print("The corpus is drawn by code, its fakes with coarse traces: the accuracy shows that the parts work together,")
    console.print("and says nothing about real fakes.")
    console.print(f"Report:     {report / 'report.html'}\nCheckpoint: {best}", highlight=False, soft_wrap=True)
