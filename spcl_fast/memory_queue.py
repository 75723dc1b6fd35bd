"""A queue of embeddings of earlier batches, as more references for a loss (arXiv:1911.05722)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

import torch
from torch import Tensor, nn

UNKNOWN = -1


def can_hold(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Return whether every value of `other` is one of `dtype`; float64 counts as holding all."""
    if dtype in (other, torch.float64):
        return True
    if dtype.is_complex or other.is_complex or dtype == torch.bool:
        return False
    if other == torch.bool:
        return True
    if dtype.is_floating_point and other.is_floating_point:
        return torch.promote_types(dtype, other) == dtype
    if dtype.is_floating_point:
        return torch.iinfo(other).max <= 2 / torch.finfo(dtype).eps
    if other.is_floating_point:
        return False
    held, given = torch.iinfo(dtype), torch.iinfo(other)
    return held.min <= given.min and given.max <= held.max


class MemoryQueue(nn.Module):
    """Keep the last `size` embeddings, and their labels.

    How many rows are filled is known on the host from the shapes of the batches, so that `rows`
    and `labels` are only the filled part, and nothing waits for the device. The state dict holds
    rows, labels and positions. Keep the queue out of a `DistributedDataParallel` model, which
    would overwrite it with the first rank's.

    Example:
        >>> queue = MemoryQueue(65_536, 128)
        >>> loss(z, torch.cat([keys, queue.rows])).loss.backward()  # InfoNCELoss(symmetric=False)
        >>> queue.enqueue(keys)

    Args:
        size: rows of the full queue.
        dim: D, features of a row.
        label: None for one label per row, or the names of several; `enqueue` then takes a dict, and
            `labels` is one.
        label_dtype: dtype of the labels, signed; floating for a loss with a window. Labels of a
            dtype that it does not hold are refused: they would change unnoticed.
        dtype: dtype of the rows.
        device: device of rows and labels.

    Raises:
        TypeError: `size` or `dim` is not an int; `dtype` is not floating; `label_dtype` cannot hold
            -1.
        ValueError: `size` or `dim` is below 1; `label` is empty or names one twice.
    """

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        label: Sequence[str] | None = None,
        label_dtype: torch.dtype = torch.int64,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"size": size, "dim": dim}.items():
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, kind in {"dtype": dtype, "label_dtype": label_dtype}.items():
            if not isinstance(kind, torch.dtype):
                raise TypeError(f"{name} must be a torch.dtype, got {kind!r}")
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating, got {dtype}")
        if not can_hold(label_dtype, torch.int8):
            raise TypeError(f"label_dtype must hold -1, for unknown, got {label_dtype}")
        if label is not None and (
            isinstance(label, str) or not label or len(set(label)) < len(label)
        ):
            got = repr(label) if isinstance(label, str) else list(label)
            raise ValueError(f"label must be None or different names, got {got}")
        self.names = None if label is None else tuple(label)
        num_labels = 1 if label is None else len(label)
        self._all_rows: Tensor
        self._all_labels: Tensor
        self.register_buffer("_all_rows", torch.zeros(size, dim, dtype=dtype, device=device))
        labels = torch.full((num_labels, size), UNKNOWN, dtype=label_dtype, device=device)
        self.register_buffer("_all_labels", labels)
        self._position = 0  # where the next row goes
        self._count = 0

    def __len__(self) -> int:
        """Return the number of filled rows."""
        return self._count

    @property
    def rows(self) -> Tensor:
        """The filled rows, (len, D), not in order of arrival; a view of the queue."""
        return self._all_rows[: self._count]

    @property
    def labels(self) -> Tensor | dict[str, Tensor]:
        """Their labels, (len,), -1 where unknown, or a dict of them; views of the queue."""
        labels = self._all_labels[:, : self._count]
        return labels[0] if self.names is None else dict(zip(self.names, labels, strict=True))

    @torch.no_grad()
    def enqueue(self, z: Tensor, labels: Tensor | Mapping[str, Tensor] | None = None) -> None:
        """Replace the oldest rows.

        Call it after the backward of a loss that took `rows`: autograd raises otherwise. Call it
        outside compiled functions, which torch.compile would compile again for every position.

        Args:
            z: (B, D), dtype and device of the queue, B of any size; stored detached.
            labels: (B,), or a dict of them by the queue's names; None for unknown.

        Raises:
            TypeError: the dtype of `z` is not that of the queue; a label's dtype does not fit.
            ValueError: a shape, a device or the names of the labels do not fit.
        """
        size, dim = self._all_rows.shape
        if not isinstance(z, Tensor):
            raise TypeError(f"z must be a tensor, got {type(z).__name__}")
        if z.ndim != 2 or z.shape[1] != dim:
            raise ValueError(f"z must be (B, {dim}), got {tuple(z.shape)}")
        if z.dtype != self._all_rows.dtype:
            raise TypeError(f"z must be {self._all_rows.dtype} as the queue, got {z.dtype}")
        columns = self._columns(labels, z.shape[0])
        for x in (z, *columns):
            if x.device != self._all_rows.device:
                raise ValueError(
                    f"z and labels must be on {self._all_rows.device} as the queue, got {x.device}"
                )
        start = self._position
        kept = min(z.shape[0], size)  # of a larger batch, the last rows
        first = min(kept, size - start)
        for store, new in ((self._all_rows, z), *zip(self._all_labels, columns, strict=True)):
            last = new[new.shape[0] - kept :]
            if last.untyped_storage().data_ptr() == store.untyped_storage().data_ptr():
                last = last.clone()  # rows of the queue itself, which are overwritten below
            store[start : start + first] = last[:first]
            store[: kept - first] = last[first:]
        self._position = (start + kept) % size
        self._count = min(self._count + kept, size)

    def _columns(self, labels: Tensor | Mapping[str, Tensor] | None, num_rows: int) -> list[Tensor]:
        """Return the values of every label, in the order of the names."""
        names = self.names
        if labels is None:
            unknown = self._all_labels.new_full((num_rows,), UNKNOWN)
            return [unknown] * (1 if names is None else len(names))
        if isinstance(labels, Mapping) != (names is not None) or (
            isinstance(labels, Mapping) and set(labels) != set(names or ())
        ):
            kind = "a tensor" if names is None else f"a dict of {sorted(names)}"
            is_dict = isinstance(labels, Mapping)
            got = f"a dict of {sorted(labels)}" if is_dict else type(labels).__name__
            raise ValueError(f"labels must be {kind}, got {got}")
        columns = [labels[n] for n in names or ()] if isinstance(labels, Mapping) else [labels]
        for column in columns:
            if not isinstance(column, Tensor):
                raise TypeError(f"labels must be a tensor, got {type(column).__name__}")
            if column.shape != (num_rows,):
                raise ValueError(f"labels must be ({num_rows},), got {tuple(column.shape)}")
            held = self._all_labels.dtype
            if column.is_floating_point() and not held.is_floating_point:
                raise TypeError(f"labels must be integer as label_dtype, got {column.dtype}")
            if not can_hold(held, column.dtype):
                raise TypeError(
                    f"labels must be of a dtype that label_dtype, {held}, holds, got {column.dtype}"
                )
        return columns

    def get_extra_state(self) -> Tensor:
        """Return position and count for the state dict."""
        return torch.tensor([self._position, self._count], device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take position and count from a state dict."""
        self._position, self._count = state.tolist()

    def extra_repr(self) -> str:
        """Return sizes for `repr`."""
        size, dim = self._all_rows.shape
        return f"size={size}, dim={dim}, filled={self._count}"
