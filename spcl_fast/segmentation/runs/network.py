"""The network of a run and how its weights are named on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.networks.encoder_unet import EncoderUNet
from spcl_fast.segmentation.networks.encoders import UNET, make_encoder
from spcl_fast.segmentation.networks.unet import Norm, UNetDecoder
from spcl_fast.segmentation.runs.run import (
    CheckpointError,
    check_metadata,
    load_weights,
    read_weights,
)


@dataclass(frozen=True)
class ModelConfig:
    """The U-Net, or an encoder of one's own.

    Attributes:
        num_classes: Classes, the background among them.
        max_channels: Channels of its deepest level; 256 in the paper.
        norm: "batch" as in the paper; "group" is independent of the batch.
        encoder: "unet"; or "module:factory" or a registered name of another encoder, to which the
            fine-tuning adds a decoder (`spcl_fast.segmentation.networks.encoders`).
    """

    num_classes: int = 4
    max_channels: int = 256
    norm: Norm = "batch"
    encoder: str = UNET


def make_network(config: ModelConfig) -> UNet:
    """Return the segmenter of a configuration, for images of one channel.

    Raises:
        ValueError: There is no such encoder, or its maps do not fit a decoder.
    """
    if config.encoder != UNET:
        return EncoderUNet(make_encoder(config.encoder), config.num_classes, config.norm)
    return UNet(1, config.num_classes, config.max_channels, config.norm)


def encoder_metadata(config: ModelConfig) -> dict[str, str]:
    """Return the metadata of an encoder checkpoint."""
    if config.encoder != UNET:
        return {"part": "encoder", "in_channels": "1", "encoder": config.encoder}
    channels = {"part": "encoder", "in_channels": "1", "max_channels": str(config.max_channels)}
    return channels | _norm_metadata(config)


def segmenter_metadata(config: ModelConfig) -> dict[str, str]:
    """Return the metadata of a segmenter checkpoint."""
    whole = encoder_metadata(config) | {"part": "segmenter"} | _norm_metadata(config)
    return whole | {"num_classes": str(config.num_classes)}


def decoder_metadata(config: ModelConfig, num_blocks: int) -> dict[str, str]:
    """Return the metadata of a checkpoint of the decoder's first blocks."""
    part = {"part": "decoder", "max_channels": str(config.max_channels)}
    return part | {"num_blocks": str(num_blocks)} | _norm_metadata(config)


def _norm_metadata(config: ModelConfig) -> dict[str, str]:
    return {} if config.norm == "batch" else {"norm": config.norm}  # which older files do not name


def decoder_blocks(decoder: UNetDecoder, num_blocks: int) -> torch.nn.ModuleDict:
    """Return the first blocks of a decoder, Up_conv5 and on, as one module."""
    ups, blocks = decoder.ups[:num_blocks], decoder.blocks[:num_blocks]
    return torch.nn.ModuleDict({"ups": ups, "blocks": blocks})


def load_pretrained(model: UNet, path: Path, config: ModelConfig) -> None:
    """Load pre-trained weights into `model`: the encoder, and the decoder if there is one.

    Args:
        model: Changed in place.
        path: The run folder, or an encoder.safetensors for the encoder alone.
        config: The architecture it must have.

    Raises:
        CheckpointError: Missing, unreadable, or of another architecture.
    """
    load_encoder(model, path, config)
    file = path / "decoder.safetensors"
    if file.is_file():
        weights, metadata = read_weights(file)
        num_blocks = int(metadata.get("num_blocks", 0))
        check_metadata(file, metadata, decoder_metadata(config, num_blocks))
        _fill(decoder_blocks(model.decoder, num_blocks), file, weights)


def load_encoder(model: UNet, path: Path, config: ModelConfig) -> None:
    """Load pre-trained weights into the encoder of `model`; as `fill_encoder`."""
    fill_encoder(model.encoder, path, config)


def fill_encoder(encoder: torch.nn.Module, path: Path, config: ModelConfig) -> None:
    """Load pre-trained weights into an encoder.

    Args:
        encoder: Changed in place.
        path: encoder.safetensors, or the run folder that holds it.
        config: The architecture it must have.

    Raises:
        CheckpointError: Missing, unreadable, or of another architecture.
    """
    file = path / "encoder.safetensors" if path.is_dir() else path
    _fill(encoder, file, load_weights(file, encoder_metadata(config)))


def load_segmenter(path: Path, config: ModelConfig) -> UNet:
    """Return the segmentation network saved at `path`, in evaluation mode.

    Raises:
        CheckpointError: Missing, unreadable, or of another architecture.
    """
    file = path / "segmenter.safetensors" if path.is_dir() else path
    model = make_network(config)
    _fill(model, file, load_weights(file, segmenter_metadata(config)))
    return model.eval()


def _fill(module: torch.nn.Module, file: Path, weights: Mapping[str, Tensor]) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"checkpoint {file} is of another architecture: {reason}") from None
