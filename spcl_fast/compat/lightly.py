"""`NTXentLoss` of lightly, in O(N D) memory.

Compared with lightly 1.6.0. What differs:

- `temperature` must be positive.
- With `gather_distributed`, every rank returns the mean over all ranks instead of the mean over its
  own rows; the gradients are the same.
- The position in the bank is kept on the host; theirs reads it back from the device.
- `memory_bank_size` may be an int above 0, as in earlier versions of theirs, with a warning: the
  number of rows, whose features are those of the first batch. 1.6 refuses it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from spcl_fast.losses.ntxent import NTXentLoss as NormalisedNTXentLoss
from spcl_fast.ops import Impl, pair_lse
from spcl_fast.ops._checks import as_number, check_rows
from spcl_fast.precision import at_least_float32


class MemoryBankModule(nn.Module):
    """Rows of earlier batches, initially random unit rows.

    Args:
        size: 0 for none, (rows, D), or rows alone, whose D is that of the first batch.
        gather_distributed: store the rows of all ranks.

    Raises:
        ValueError: `size` is neither.
    """

    def __init__(self, size: int | Sequence[int] = 0, gather_distributed: bool = False) -> None:
        super().__init__()
        is_number = isinstance(size, Integral)
        has_several = isinstance(size, Iterable) and getattr(size, "ndim", 1) > 0
        sizes: list[Any] = list(size) if has_several else [size]  # type: ignore[arg-type]
        if isinstance(size, bool) or not all(isinstance(x, Integral) for x in sizes):
            raise TypeError(f"memory_bank_size must be an int or a sequence of two, got {size!r}")
        shape = tuple(int(x) for x in sizes)
        if min(shape) < 0 or (shape != (0,) and len(shape) != 2 and not is_number):
            raise ValueError(f"memory_bank_size must be rows or (rows, features), got {size}")
        if is_number and shape != (0,):
            warnings.warn(
                f"memory_bank_size={size} leaves the features to the first batch: give "
                f"({size}, features), as lightly 1.6 asks for",
                stacklevel=3,
            )
        self.size = shape
        self.gather_distributed = gather_distributed
        self.bank: Tensor
        self.bank_ptr: Tensor
        rows = _random_rows(shape) if len(shape) == 2 else torch.empty(0)
        self.register_buffer("bank", rows, persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long), persistent=False)
        self._position = 0

    def start(self, dim: int) -> None:
        """Make the rows if their features were left to the first batch."""
        if len(self.size) == 1:
            self.size = (*self.size, dim)
            with torch.device("cpu"):  # whose random numbers those of the other banks are
                rows = _random_rows(self.size)
            self.bank = rows.to(self.bank.device)

    @torch.no_grad()
    def enqueue(self, rows: Tensor) -> None:
        """Overwrite rows from the current position on; wrap around at the end, as theirs does."""
        if self.gather_distributed and _world_size() > 1:
            gathered = [torch.empty_like(rows) for _ in range(_world_size())]
            torch.distributed.all_gather(gathered, rows.contiguous())
            rows = torch.cat(gathered)
        space = self.size[0] - self._position
        self.bank[self._position : self._position + len(rows)] = rows[:space].to(self.bank.dtype)
        self._position = 0 if len(rows) >= space else self._position + len(rows)
        self.bank_ptr.fill_(self._position)


def _random_rows(shape: tuple[int, ...]) -> Tensor:
    return normalize(torch.randn(shape), dim=-1)


class NTXentLoss(nn.Module):
    """NT-Xent (arXiv:2002.05709), or with a bank the loss of MoCo (arXiv:1911.05722).

    Rows are normalised here. Without a bank the other rows of the batch are the negatives. With a
    bank, the anchors are `out0` and their only negatives are the rows of the bank; `out1` enters
    the bank if `out0` requires a gradient.

    Example:
        >>> loss = NTXentLoss(temperature=0.5)
        >>> loss(view1, view2).backward()

    Args:
        temperature: tau.
        memory_bank_size: 0 for none, (rows, D), or rows alone, whose D is that of the first batch.
        gather_distributed: compare with the rows of all ranks; requires
            DistributedDataParallel.
        impl: implementation of the ops.

    Raises:
        ValueError: `temperature` is below 1e-8, the size does not fit, or torch has no
            distributed package to gather with.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        impl: Impl = "auto",
    ) -> None:
        super().__init__()
        if not as_number("temperature", temperature) >= 1e-8:
            raise ValueError(f"temperature must be at least 1e-8, got {temperature}")
        if gather_distributed and not torch.distributed.is_available():
            raise ValueError("gather_distributed must be False where torch has no distributed")
        self.memory_bank = MemoryBankModule(memory_bank_size, gather_distributed)
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.impl: Impl = impl

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            out0: (B, D), floating, rows of any norm.
            out1: (B, D), the other view.

        Returns:
            The loss, 0-dim, differentiable in both views but not in the bank.

        Raises:
            TypeError: a view is not floating.
            ValueError: the shapes differ.
        """
        check_rows("out0", out0)
        check_rows("out1", out1)
        if out0.shape != out1.shape:
            raise ValueError(f"out1 must be {tuple(out0.shape)} as out0, got {tuple(out1.shape)}")
        tau = self.temperature
        needs_bank_update = out0.requires_grad
        out0 = normalize(at_least_float32(out0), dim=1)
        out1 = normalize(at_least_float32(out1), dim=1)
        if self.memory_bank.size[0] > 0:
            self.memory_bank.start(out0.shape[1])
            bank = self.memory_bank.bank.to(out0, copy=True)  # the update must not reach backward
            lse, _ = pair_lse(out0, tau, refs=bank, impl=self.impl)
            own = (out0 * out1).sum(1) / tau
            if needs_bank_update:
                self.memory_bank.enqueue(out1)
            return (torch.logaddexp(own, lse) - own).mean()
        is_gathered = self.gather_distributed and _world_size() > 1
        group = torch.distributed.group.WORLD if is_gathered else None
        loss: Tensor = NormalisedNTXentLoss(tau, impl=self.impl, group=group)(out0, out1).loss
        return loss


def _world_size() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1
