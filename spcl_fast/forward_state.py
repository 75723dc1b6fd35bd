"""What a forward changes besides what it returns, for the same forward to run again."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RandomStates:
    """The random states of the CPU and of the devices of some tensors."""

    def __init__(self, tensors: list[Tensor]) -> None:
        devices = {x.device for x in tensors} - {torch.device("cpu"), torch.device("meta")}
        # MPS is one device, whose functions take none
        self._calls = [
            (torch.get_device_module(d), () if d.type == "mps" else (d,)) for d in devices
        ]

    def capture(self) -> list[Tensor]:
        """Return the states now."""
        return [
            torch.get_rng_state(),
            *(module.get_rng_state(*device) for module, device in self._calls),
        ]

    def restore(self, states: list[Tensor]) -> None:
        """Go back to what `capture` returned."""
        torch.set_rng_state(states[0])
        for (module, device), state in zip(self._calls, states[1:], strict=True):
            module.set_rng_state(state, *device)


class Buffers:
    """The buffers of the modules in training mode, and those that a forward changes."""

    def __init__(self, model: nn.Module) -> None:
        self._before = [
            (module, name, buffer, buffer._version, buffer.clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if module.training and buffer is not None
        ]
        self._changed: list[tuple[nn.Module, str, Tensor, Tensor]] = []

    def forward_is_done(self) -> None:
        """Note what has changed, and keep nothing else."""
        self._changed = [
            (module, name, buffer, copy)
            for module, name, buffer, version, copy in self._before
            if module._buffers[name] is not buffer or buffer._version != version
        ]
        self._before = []

    def rewind(self) -> None:
        """Return what has changed to what it was, for the same forward to change it again."""
        with torch.no_grad():
            for module, name, buffer, copy in self._changed:
                module._buffers[name] = buffer.copy_(copy)
