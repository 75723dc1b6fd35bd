"""Weights and networks of a run, for other programs.

    safetensors    the encoder, as `load_encoder` reads it
    monai          the encoder under the names of MONAI's BasicUNet
    nnunet         the encoder under the names of the PlainConvEncoder nnU-Net builds on
    torchscript    the segmenter as a program, for torch.jit.load in Python and C++
    torch-export   the segmenter as a program, for torch.export.load

Both other encoders take the same steps as ours when they are built as docs/export.md says, so their
maps are equal. Their decoders do not: BasicUNet and nnU-Net expand by a transposed convolution and
we by nearest neighbours and a 3x3 convolution, so no decoder is exported under their names.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.networks.unet import STRIDE
from spcl_fast.segmentation.runs.config import ConfigError, stage_config
from spcl_fast.segmentation.runs.network import encoder_metadata, load_encoder, load_segmenter
from spcl_fast.segmentation.runs.run import CheckpointError, save_weights

Format = Literal["safetensors", "monai", "nnunet", "torchscript", "torch-export"]
SUFFIXES: Mapping[Format, str] = {
    "safetensors": ".safetensors",
    "monai": ".safetensors",
    "nnunet": ".safetensors",
    "torchscript": ".pt",
    "torch-export": ".pt2",
}
ABOUT_FILE = "spcl_fast.json"  # name of the description inside a torchscript or torch-export file
LAYERS_PER_CONV = 3  # convolution, BatchNorm, ReLU


@dataclass(frozen=True)
class ExportConfig:
    """Write the encoder or the segmenter of a run for other programs.

    Attributes:
        run: Run folder of `pretrain` or `finetune`; the formats torchscript and torch-export take
            the segmenter, which only `finetune` leaves.
        out: New file: .safetensors, for torchscript .pt and for torch-export .pt2.
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
    grid = {
        "grid_size": trained.data.grid.size,
        "grid_spacing_mm": trained.data.grid.spacing_mm,
    }
    if config.format in ("torchscript", "torch-export"):
        model = _segmenter(config, trained)
        about = json.dumps(
            {**grid, "num_classes": trained.model.num_classes, "multiple_of": STRIDE}
        )
        save = _torchscript if config.format == "torchscript" else _torch_export
        content = save(model, about)
        with atomic_file(config.out) as partial:
            partial.write_bytes(content)
        return config.out
    weights = _NAMES[config.format](_encoder(config, trained).encoder.state_dict())
    metadata = encoder_metadata(trained.model) | {key: str(value) for key, value in grid.items()}
    if config.format != "safetensors":
        metadata["part"] = f"encoder of {config.format}"
    save_weights(config.out, weights, metadata)
    return config.out


def monai_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a `UNetEncoder` under the names of BasicUNet's encoder.

    Args:
        weights: State of the encoder.

    Returns:
        The same tensors, and zero biases for the convolutions, which ours do not have.
    """
    named: dict[str, Tensor] = {}
    for name, value in weights.items():
        level, conv, is_norm, rest = _parse(name)
        block = f"down_{level}.convs" if level else "conv_0"
        if is_norm:
            named[f"{block}.conv_{conv}.adn.N.{rest}"] = value
        else:
            named[f"{block}.conv_{conv}.conv.{rest}"] = value
            named[f"{block}.conv_{conv}.conv.bias"] = torch.zeros(value.shape[0])
    return named


def nnunet_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a `UNetEncoder` under the names of a PlainConvEncoder with max-pooling.

    Args:
        weights: State of the encoder.

    Returns:
        Each tensor twice, since that encoder registers its layers under two names.
    """
    named: dict[str, Tensor] = {}
    for name, value in weights.items():
        level, conv, is_norm, rest = _parse(name)
        layer = "norm" if is_norm else "conv"
        block = f"stages.{level}.{min(level, 1)}.convs.{conv}"  # 0 is the max-pool from level 1 on
        named[f"{block}.{layer}.{rest}"] = value
        named[f"{block}.all_modules.{int(is_norm)}.{rest}"] = value.clone()
    return named


def _parse(name: str) -> tuple[int, int, bool, str]:
    """Split blocks.LEVEL.LAYER.REST into level, convolution of the level, is it its norm, rest."""
    _, level, layer, rest = name.split(".", 3)
    conv, kind = divmod(int(layer), LAYERS_PER_CONV)
    return int(level), conv, kind == 1, rest


_NAMES: Mapping[str, Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]] = {
    "safetensors": lambda weights: weights,
    "monai": monai_names,
    "nnunet": nnunet_names,
}


def _encoder(config: ExportConfig, trained: FinetuneConfig) -> UNet:
    """Return a network with the encoder of the run."""
    if (config.run / "segmenter.safetensors").is_file():
        return load_segmenter(config.run, trained.model)
    if not (config.run / "encoder.safetensors").is_file():
        raise CheckpointError(
            f"run must hold encoder.safetensors or segmenter.safetensors, got {config.run}"
        )
    model = UNet(1, trained.model.num_classes, trained.model.max_channels)
    load_encoder(model, config.run, trained.model)
    return model


def _segmenter(config: ExportConfig, trained: FinetuneConfig) -> UNet:
    if not (config.run / "segmenter.safetensors").is_file():
        raise ConfigError(
            f"run must hold segmenter.safetensors for {config.format}, got {config.run}"
        )
    return load_segmenter(config.run, trained.model)


def _torchscript(model: UNet, about: str) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # the checks of the image's shape are not traced, and newer torch recommends torch.export
        warnings.simplefilter("ignore")
        program = torch.jit.trace(model, _example())  # type: ignore[no-untyped-call]
        torch.jit.save(program, content, _extra_files={ABOUT_FILE: about})
    return content.getvalue()


def _torch_export(model: UNet, about: str) -> bytes:
    # a side of 16 is no case of this program: a map of one pixel is exported as a size of its own
    rows, columns = (torch.export.Dim(name, min=2) for name in ("rows", "columns"))
    sides = {0: torch.export.Dim("batch"), 2: STRIDE * rows, 3: STRIDE * columns}
    program = torch.export.export(model, (_example(),), dynamic_shapes=(sides,), strict=False)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={ABOUT_FILE: about})
    return content.getvalue()


def _example() -> Tensor:
    return torch.zeros(2, 1, 2 * STRIDE, 3 * STRIDE)  # (B, 1, H, W), no side to be taken for fixed
