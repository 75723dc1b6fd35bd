"""Networks in evaluation mode for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and back into the mode that it was in."""
    was_training = network.training
    network.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # other shapes would be compiled again
            yield
    finally:
        network.train(was_training)
