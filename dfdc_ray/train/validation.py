"""Metrics within training: on the core faces of the validation split, each counted once however many processes there are."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn import functional

from dfdc_ray.shards.dataset import Batch
from dfdc_ray.shards.rows import RowTable

METRICS = ("frame_log_loss", "frame_auc", "video_log_loss", "video_auc")


def use_bf16(model: nn.Module, device: torch.device) -> bool:
    """Whether bf16 is the quicker way: where hardware does it, but for depthwise convolutions on a CPU (docs/benchmarks.md).

    Emulated on a CPU it took 20 to 30 times as long as float32; depthwise convolutions take longer even where it is not.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    depthwise = any(isinstance(m, nn.Conv2d) and 1 < m.groups == m.in_channels for m in model.modules())
    return not depthwise and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def precision(model: nn.Module, device: torch.device) -> str:
    """In what a model is trained there: bf16 or float32, its weights in float32 either way."""
    return "bf16" if use_bf16(model, device) else "float32"


def model_to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on a device, its weights as `to_device` has the pictures."""
    in_space_alone = all(weight.ndim < 5 for weight in model.parameters())
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if in_space_alone else model


def to_device(images: torch.Tensor, sound: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, ...]:
    """What a model is called with, where it is: pictures, in the memory format that convolutions are quickest with (clips have no such),
    and the sound, if there is any.
    """
    memory_format = torch.channels_last if images.ndim == 4 else torch.preserve_format
    images = images.to(device, memory_format=memory_format, non_blocking=True)
    return (images, sound.to(device, non_blocking=True)) if sound.numel() else (images,)


@torch.inference_mode()
def validate(
    model: nn.Module, batches: Iterable[Batch], rows: RowTable, *, device: torch.device, world_size: int
) -> dict[str, float | None]:
    """`metrics` of all rows, of which this process predicts the ones in its batches. Every process gets the result."""
    model.eval()
    if world_size > 1:  # the ranks' running statistics differ by their last batch
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in batches:
        inputs = to_device(batch.images, batch.sound, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(model, device)):
            logits = model(*inputs)
        found.append((batch.positions.numpy(), logits.float().cpu().numpy()))
    if world_size > 1:
        gathered: list[Any] = [None] * world_size
        distributed.all_gather_object(gathered, found)
        found = [pair for part in gathered for pair in part]
    logits_of_all = np.full(len(rows), np.nan, np.float32)
    for positions, values in found:
        logits_of_all[positions] = values
    return metrics(logits_of_all, rows.labels, rows.videos)


def metrics(logits: np.ndarray, labels: np.ndarray, videos: np.ndarray) -> dict[str, float | None]:
    """Log loss in nats and ROC AUC (None with one class only), by face and by video. A video's score is the mean of its probabilities.

    logits, labels: [N]; videos: int [N], the same number for the faces of a video.
    """
    face_logits, face_labels = torch.from_numpy(logits.astype(np.float64)), torch.from_numpy(labels.astype(np.float64))
    _, first, number, count = np.unique(videos, return_index=True, return_inverse=True, return_counts=True)
    scores = torch.from_numpy(np.bincount(number, weights=torch.sigmoid(face_logits).numpy()) / count).clamp(0, 1)
    video_labels = face_labels[torch.from_numpy(first)]
    return {
        "frame_log_loss": functional.binary_cross_entropy_with_logits(face_logits, face_labels).item(),
        "frame_auc": _auc(face_logits, face_labels),
        "video_log_loss": functional.binary_cross_entropy(scores, video_labels).item(),
        "video_auc": _auc(scores, video_labels),
    }


def _auc(scores: torch.Tensor, labels: torch.Tensor) -> float | None:
    if labels.min() == labels.max():
        return None
    from torchmetrics.functional.classification import binary_auroc  # 3 s of CPU time, of which a process without metrics wants nothing

    return float(binary_auroc(scores, labels.long()))
