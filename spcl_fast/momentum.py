"""A teacher whose weights follow a student's: momentum encoders and mean teachers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn


@torch.no_grad()
def momentum_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the parameters and buffers of a teacher towards those of its student.

        teacher <- momentum teacher + (1 - momentum) student

    (arXiv:1911.05722, eq. 2; arXiv:1703.01780 for segmenters.) Integer buffers are copied. Nothing
    is copied to the host.

    Example:
        >>> teacher = copy.deepcopy(student).requires_grad_(False)
        >>> momentum_update(teacher, student, 0.999)  # after every optimizer.step()

    Args:
        teacher: a module with the names and shapes of `student`, such as a deep copy of it.
        student: the module being trained.
        momentum: in [0, 1]; 0 copies the student.

    Raises:
        ValueError: `momentum` is not in [0, 1]; the names or shapes of the modules differ.
    """
    old, new = (
        dict(chain(module.named_parameters(), module.named_buffers()))
        for module in (teacher, student)
    )
    shapes = [{name: x.shape for name, x in tensors.items()} for tensors in (old, new)]
    differ = sorted(
        name for name in old.keys() | new.keys() if shapes[0].get(name) != shapes[1].get(name)
    )
    if differ:
        raise ValueError(f"teacher must have the names and shapes of student, got other {differ}")
    average_tensors(old.values(), (new[name] for name in old), momentum)


@torch.no_grad()
def average_tensors(teacher: Iterable[Tensor], student: Iterable[Tensor], momentum: float) -> None:
    """Apply `momentum_update` to two sequences of tensors of equal length.

    Args:
        teacher: tensors, changed in place.
        student: tensors of the same shapes.
        momentum: in [0, 1].

    Raises:
        ValueError: `momentum` is not in [0, 1].
    """
    momentum = float(momentum)
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be in [0, 1], got {momentum}")
    for old, new in zip(teacher, student, strict=True):
        if old.is_floating_point():
            torch.lerp(new.to(old), old, momentum, out=old)
        else:
            old.copy_(new)
