"""Encoders of one's own.

An encoder is a module that takes images (B, 1, H, W) and returns a feature map (B, C, h, w), or
several from shallow to deep: the pre-training uses the last, the segmenter all. It is named in the
configuration: by "module:factory", or by the name under which `register_encoder` was given its
factory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

import torch
from torch import Tensor, nn

from spcl_fast.segmentation.networks.evaluation_mode import evaluation_mode

UNET = "unet"  # the encoder of `UNet`, which comes with a decoder
_FACTORIES: dict[str, Callable[[], nn.Module]] = {}


def register_encoder(name: str, factory: Callable[[], nn.Module]) -> None:
    """Let the configuration name an encoder.

    Raises:
        ValueError: The name is taken or has a colon.
    """
    if name == UNET or name in _FACTORIES or ":" in name:
        raise ValueError(f"name must be new and without a colon, got {name!r}")
    _FACTORIES[name] = factory


def make_encoder(name: str) -> nn.Module:
    """Return a new encoder of the name.

    Raises:
        ValueError: There is no such factory, or it does not return a module.
    """
    if name in _FACTORIES:
        factory = _FACTORIES[name]
    else:
        module, _, attribute = name.partition(":")
        try:
            factory = getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            known = ", ".join([UNET, *_FACTORIES])
            raise ValueError(
                f"model.encoder must be module:factory or one of {known}, got {name!r}: {error}"
            ) from None
    encoder = factory()
    if not isinstance(encoder, nn.Module):
        raise ValueError(f"model.encoder must make a module, got {type(encoder).__name__}")
    return encoder


def all_maps(output: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return the feature maps that an encoder returned."""
    return [output] if isinstance(output, Tensor) else list(output)


def last_map(output: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the deepest of the feature maps that an encoder returned."""
    return all_maps(output)[-1]


def num_features(encoder: nn.Module, size: int) -> int:
    """Return the channels of the encoder's last map for images of a size; as `map_shapes`."""
    return map_shapes(encoder, size)[-1][1]


@torch.no_grad()
def map_shapes(encoder: nn.Module, size: int) -> list[tuple[int, ...]]:
    """Return the shapes (2, C, h, w) of the encoder's maps for two images of a size.

    Raises:
        ValueError: One is not a map.
    """
    with evaluation_mode(encoder):
        maps = all_maps(encoder(torch.zeros(2, 1, size, size)))
    shapes = [tuple(x.shape) for x in maps]
    for shape in shapes:
        if len(shape) != 4 or shape[0] != 2:
            raise ValueError(f"the encoder's maps must be (2, C, h, w) for 2 images, got {shape}")
    return shapes
