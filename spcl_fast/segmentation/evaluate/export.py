"""Weights and networks for other programs.

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
import warnings
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.networks.unet import STRIDE

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


ENCODER_NAMES: Mapping[Format, Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]] = {
    "safetensors": lambda weights: weights,
    "monai": monai_names,
    "nnunet": nnunet_names,
}


def torchscript(model: UNet, about: str) -> bytes:
    """Return `model` as a file for torch.jit.load, with the description `about` inside."""
    content = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # the checks of the image's shape are not traced, and newer torch recommends torch.export
        warnings.simplefilter("ignore")
        program = torch.jit.trace(model, _example())  # type: ignore[no-untyped-call]
        torch.jit.save(program, content, _extra_files={ABOUT_FILE: about})
    return content.getvalue()


def torch_export(model: UNet, about: str) -> bytes:
    """Return `model` as a file for torch.export.load, with the description `about` inside."""
    # not for sides of 16: a map of one pixel is exported as a size of its own
    rows, columns = (torch.export.Dim(name, min=2) for name in ("rows", "columns"))
    sides = {0: torch.export.Dim("batch"), 2: STRIDE * rows, 3: STRIDE * columns}
    program = torch.export.export(model, (_example(),), dynamic_shapes=(sides,), strict=False)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={ABOUT_FILE: about})
    return content.getvalue()


PROGRAMS: Mapping[Format, Callable[[UNet, str], bytes]] = {
    "torchscript": torchscript,
    "torch-export": torch_export,
}


def _example() -> Tensor:
    return torch.zeros(2, 1, 2 * STRIDE, 3 * STRIDE)  # (B, 1, H, W), no side to be taken for fixed
