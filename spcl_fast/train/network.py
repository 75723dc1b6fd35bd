"""The network of a run and how its weights are named on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from spcl_fast.models import UNet
from spcl_fast.train.run import CheckpointError, load_weights


@dataclass(frozen=True)
class ModelConfig:
    """The U-Net.

    Attributes:
        num_classes: Classes, the background among them.
        max_channels: Channels of its deepest level; 256 in the paper.
    """

    num_classes: int = 4
    max_channels: int = 256


def encoder_metadata(config: ModelConfig) -> dict[str, str]:
    """Return what an encoder checkpoint must say of itself."""
    return {"part": "encoder", "in_channels": "1", "max_channels": str(config.max_channels)}


def segmenter_metadata(config: ModelConfig) -> dict[str, str]:
    """Return what a segmenter checkpoint must say of itself."""
    whole = encoder_metadata(config) | {"part": "segmenter"}
    return whole | {"num_classes": str(config.num_classes)}


def load_encoder(model: UNet, path: Path, config: ModelConfig) -> None:
    """Load pre-trained weights into the encoder of `model`.

    Args:
        model: Changed in place.
        path: encoder.safetensors, or the run folder that holds it.
        config: The architecture it must have.

    Raises:
        CheckpointError: Missing, unreadable, or of another architecture.
    """
    file = path / "encoder.safetensors" if path.is_dir() else path
    _fill(model.encoder, file, encoder_metadata(config))


def load_segmenter(path: Path, config: ModelConfig) -> UNet:
    """Return the segmentation network saved at `path`, in evaluation mode.

    Raises:
        CheckpointError: Missing, unreadable, or of another architecture.
    """
    file = path / "segmenter.safetensors" if path.is_dir() else path
    model = UNet(1, config.num_classes, config.max_channels)
    _fill(model, file, segmenter_metadata(config))
    return model.eval()


def _fill(module: torch.nn.Module, file: Path, expected: dict[str, str]) -> None:
    weights = load_weights(file, expected)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"checkpoint {file} is of another architecture: {reason}") from None
