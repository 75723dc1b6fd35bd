"""Write the weights or the network of a run for other programs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.evaluate.export import ENCODER_NAMES, PROGRAMS, SUFFIXES, Format
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.networks.encoders import UNET
from spcl_fast.segmentation.networks.unet import STRIDE
from spcl_fast.segmentation.runs.config import ConfigError, stage_config
from spcl_fast.segmentation.runs.network import (
    encoder_metadata,
    load_encoder,
    load_segmenter,
    make_network,
)
from spcl_fast.segmentation.runs.run import CheckpointError, save_weights


@dataclass(frozen=True)
class ExportConfig:
    """Write the encoder or the segmenter of a run for other programs.

    Attributes:
        run: Run folder of `pretrain` or `finetune`; torchscript and torch-export need the
            segmenter, hence a run of `finetune`.
        out: New file: .safetensors; .pt for torchscript, .pt2 for torch-export.
        format: Encoder weights for spcl_fast, MONAI or nnU-Net, or the segmenter as a program.
    """

    run: Path
    out: Path
    format: Format = "safetensors"


def export(config: ExportConfig) -> Path:
    """Write what `config` asks for; return the file.

    Raises:
        ConfigError: `out` exists or has another suffix, or the run has no segmenter to export.
        CheckpointError: The run has no weights, or they cannot be used.
        OSError: The file could not be written.
    """
    suffix = SUFFIXES[config.format]
    if config.out.suffix != suffix:
        raise ConfigError(f"out must end in {suffix} for {config.format}, got {config.out}")
    if config.out.exists():
        raise ConfigError(f"out must be a new file, got {config.out} which exists")
    # the sections data and model read alike for both stages
    trained = stage_config(FinetuneConfig, "finetune", config.run / "config.yaml")
    if trained.model.encoder != UNET and config.format != "safetensors":
        raise ConfigError(
            f"format must be safetensors with encoder {trained.model.encoder}, got {config.format}"
        )
    grid = {
        "grid_size": trained.data.grid.size,
        "grid_spacing_mm": trained.data.grid.spacing_mm,
    }
    if config.format in PROGRAMS:
        about = {**grid, "num_classes": trained.model.num_classes, "multiple_of": STRIDE}
        content = PROGRAMS[config.format](_segmenter(config, trained), json.dumps(about))
        with atomic_file(config.out) as partial:
            partial.write_bytes(content)
        return config.out
    weights = ENCODER_NAMES[config.format](_encoder(config, trained).encoder.state_dict())
    metadata = encoder_metadata(trained.model) | {key: str(value) for key, value in grid.items()}
    if config.format != "safetensors":
        metadata["part"] = f"encoder of {config.format}"
    save_weights(config.out, weights, metadata)
    return config.out


def _encoder(config: ExportConfig, trained: FinetuneConfig) -> UNet:
    """Return a network with the encoder of the run."""
    if (config.run / "segmenter.safetensors").is_file():
        return load_segmenter(config.run, trained.model)
    if not (config.run / "encoder.safetensors").is_file():
        raise CheckpointError(
            f"run must hold encoder.safetensors or segmenter.safetensors, got {config.run}"
        )
    model = make_network(trained.model)
    load_encoder(model, config.run, trained.model)
    return model


def _segmenter(config: ExportConfig, trained: FinetuneConfig) -> UNet:
    if not (config.run / "segmenter.safetensors").is_file():
        raise ConfigError(
            f"run must hold segmenter.safetensors for {config.format}, got {config.run}"
        )
    return load_segmenter(config.run, trained.model)
