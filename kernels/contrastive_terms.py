"""`contrastive_terms` in Triton: from rows to scalars and back, a launch for each thing to know.

Forward:  planes, and the order of the first label | sums of exp | merge, and sums of classes of the
          first label | for each label: order, sums of classes, losses of its rows, reduction.
Backward: weights of the rows | gradient of lse | for each label: gradient of its losses, added to
          what is there, the last one in the dtype of the rows.

With a bank the columns are the rows and the bank: one set of planes and one walk over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spcl_fast.kernels._bound import cdiv
from spcl_fast.kernels._class_sums import BlockSums, add_class_gradient
from spcl_fast.kernels._order import Counted, Order, order_of
from spcl_fast.kernels._pair_sums import fill_lse
from spcl_fast.kernels._planes import Planes, num_planes, planes_of
from spcl_fast.kernels._replay import replayed
from spcl_fast.kernels._row_weights import RowWeights
from spcl_fast.kernels._similarities import PlanePairs, as_scalar, device_of
from spcl_fast.kernels._tape import Results
from spcl_fast.kernels._term_kernels import reduce_label_kernel, term_weights_kernel
from spcl_fast.kernels.pair_lse import gradient_parts
from spcl_fast.kernels.positive_pair_loss import Losses, add_gradient, fill_losses
from spcl_fast.operands import ContrastiveTerms, Kept, Label, Pairs, PositivePairLoss
from spcl_fast.pair_weights import Mode, has_unit_weights

_REDUCED_ROWS = 4096
_WEIGHT_ROWS = 256


class _KeptOrder(NamedTuple):
    rows: Tensor  # (3, N), their side
    cols: Tensor | None  # (3, M), None if they are the rows
    sums: Tensor | None  # of blocks of columns, None if there are none


class _State(NamedTuple):
    planes: Tensor | None  # None if they are the rows themselves
    norms: Tensor
    weight_sum: Tensor  # (K, N)
    num_pos: Tensor  # (K, N)
    slopes: Tensor  # (K,)
    factors: Tensor  # (K,), lambda
    orders: tuple[_KeptOrder, ...]  # of each label

    @classmethod
    def of(cls, tensors: Sequence[Any]) -> _State:
        """Return what `tensors` gave."""
        num_single = len(cls._fields) - 1
        rest = iter(tensors[num_single:])
        orders = map(_KeptOrder, rest, rest, rest)
        return cls._make([*tensors[:num_single], tuple(orders)])

    def tensors(self) -> Results:
        return *self[:-1], *chain.from_iterable(self.orders)


def contrastive_terms_fwd(
    pairs: Pairs,
    labels: Sequence[Label],
    factors: Sequence[float],
    mode: Mode,
    *,
    correct_grad: bool,
    has_backward: bool,  # what the backward needs is small
) -> tuple[ContrastiveTerms, Kept]:
    """Return the terms, and what the backward needs."""

    def run(gammas: Sequence[float]) -> tuple[Results, Results]:
        paced = _at(gammas, labels)
        results, state = _forward(pairs, paced, factors, mode, correct_grad=correct_grad)
        return results, state.tensors()

    tensors, gammas, kind = _arguments(pairs, labels)
    key = "contrastive_terms_fwd", *kind, *map(float, factors), mode, correct_grad
    terms, kept = replayed(key, tensors, (), gammas, run)
    return ContrastiveTerms(*terms), kept  # type: ignore[arg-type]


def contrastive_terms_bwd(
    pairs: Pairs,
    labels: Sequence[Label],
    lse: Tensor,  # (N,) float32
    kept: Kept,
    dloss: Tensor | None,  # () float32
    dlosses: Tensor | None,  # (K,) float32
    mode: Mode,
) -> Tensor:
    """Return dz (N, D), as `z`."""

    def run(gammas: Sequence[float]) -> tuple[Results, Results]:
        state = _State.of(kept.tensors())
        return (_backward(pairs, _at(gammas, labels), lse, state, dloss, dlosses, mode),), ()

    tensors, gammas, kind = _arguments(pairs, labels)
    key = "contrastive_terms_bwd", *kind, mode, dloss is None, dlosses is None
    given = [*tensors, *[x for x in (dloss, dlosses) if x is not None]]
    (dz,), _ = replayed(key, given, (lse, *kept.present), gammas, run)
    assert dz is not None
    return dz


def _arguments(
    pairs: Pairs, labels: Sequence[Label]
) -> tuple[list[Tensor], list[float], list[Any]]:
    """Return the tensors, the numbers and what else `replayed` must know of."""
    z, bank, tau = pairs
    tensors, gammas = [z], []
    kind: list[Any] = [num_planes(z.dtype), bank is None]
    if bank is not None:
        tensors.append(bank)
    if isinstance(tau, float):
        kind.append(tau)
    else:
        tensors.append(tau)
    for values, gamma, window, ref_values in labels:
        tensors.append(values)
        if ref_values is not None:
            tensors.append(ref_values)
        if isinstance(gamma, float):
            gammas.append(gamma)
            kind += window, has_unit_weights(gamma, None)
        else:
            tensors.append(gamma)
            kind += window, None
    return tensors, gammas, kind


def _at(gammas: Sequence[float], labels: Sequence[Label]) -> list[Label]:
    """Return the labels with other numbers for gamma."""
    rest = iter(gammas)
    return [x if isinstance(x.gamma, Tensor) else x._replace(gamma=next(rest)) for x in labels]


def _forward(
    pairs: Pairs,
    labels: Sequence[Label],
    factors: Sequence[float],
    mode: Mode,
    *,
    correct_grad: bool,
) -> tuple[ContrastiveTerms, _State]:
    z, bank, _ = pairs
    num_labels, N, device = len(labels), z.shape[0], z.device
    lse = torch.empty(N, dtype=torch.float32, device=device)
    loss, weight_sum = lse.new_empty(num_labels, N), lse.new_empty(num_labels, N)
    num_pos = torch.empty(num_labels, N, dtype=torch.int64, device=device)
    terms = ContrastiveTerms.of(
        lse.new_empty(()),
        lse.new_empty(num_labels),
        lse,
        lse.new_empty(num_labels + 1, 3),
        num_pos.new_empty(num_labels + 1),
    )
    slopes, factor_values = lse.new_empty(num_labels), lse.new_empty(num_labels)
    orders: list[_KeptOrder] = []
    with device_of(z):
        counted = None if bank is not None else Counted.of(labels[0].values, labels[0].window)
        planes = planes_of(z, bank, counted)
        plane_pairs = _pairs(planes, pairs)
        order = _order(labels[0], counted)
        block_sums = _block_sums(plane_pairs, order, labels[0])
        fill_lse(plane_pairs, lse, None, block_sums)
        for k, label in enumerate(labels):
            if k > 0:
                order = _order(label, None)
                block_sums = _block_sums(plane_pairs, order, label)
                if block_sums is not None:
                    block_sums.fill(plane_pairs, None)
            sums = None if block_sums is None else block_sums.sums
            out = PositivePairLoss(loss[k], weight_sum[k], num_pos[k])
            fill_losses(plane_pairs, lse, label, order, mode, out, sums)
            orders.append(_KeptOrder(order.rows, None if bank is None else order.cols, sums))
            reduce_label_kernel[(1,)](
                loss,
                weight_sum,
                num_pos,
                planes.sums,
                *(terms.loss, terms.losses, terms.info, terms.label_anchors),
                slopes,
                factor_values,
                as_scalar(label.gamma),
                float(factors[k]),
                planes.first_blocks,
                N,
                num_labels,
                k,
                DP=planes.padded_dim,
                IS_HARD=mode == "hard",
                IS_PACED=not has_unit_weights(label.gamma, None),
                CORRECTS=correct_grad,
                BLOCK=_REDUCED_ROWS,
                num_warps=8,
            )
    data = None if planes.data.data_ptr() == z.data_ptr() else planes.data
    state = _State(data, planes.norms, weight_sum, num_pos, slopes, factor_values, tuple(orders))
    return terms, state


def _backward(
    pairs: Pairs,
    labels: Sequence[Label],
    lse: Tensor,
    state: _State,
    dloss: Tensor | None,
    dlosses: Tensor | None,
    mode: Mode,
) -> Tensor:
    z, bank, _ = pairs
    num_labels = len(labels)
    data = z.unsqueeze(0) if state.planes is None else state.planes
    planes = Planes(data, state.norms, state.norms, z.shape[1], 0)
    plane_pairs = _pairs(planes, pairs)
    M = plane_pairs.num_cols
    dz = torch.empty_like(z, memory_format=torch.contiguous_format)
    c = torch.empty_like(state.weight_sum)
    weight = c.new_empty(M)
    col_lse = None if bank is None else c.new_empty(M)
    bound = c.new_empty(())
    with device_of(z):
        term_weights_kernel[(cdiv(M, _WEIGHT_ROWS),)](
            *plane_pairs.bounds(),
            lse,
            *(state.weight_sum, state.num_pos, state.slopes, state.factors),
            dloss,
            None if dlosses is None else dlosses.contiguous(),
            c,
            weight,
            col_lse,
            bound,
            num_labels,
            BLOCK=_WEIGHT_ROWS,
        )
        weights = RowWeights(lse, weight, lse if col_lse is None else col_lse, weight, bound)
        # a product of wide rows that is followed by one label alone may be rounded
        is_rounded = plane_pairs.is_wide and num_labels == 1
        parts = gradient_parts(plane_pairs, weights, z.dtype if is_rounded else torch.float32)
        for k, label in enumerate(labels):
            rows, cols, sums = state.orders[k]
            order = Order(rows, rows if cols is None else cols)
            out = dz if k == num_labels - 1 else parts[0]
            if has_unit_weights(label.gamma, label.window):
                given = plane_pairs, order, c[k], c[k], sums
                # of a bank the columns that are no rows have no losses
                add_class_gradient(*given, is_even=bank is None, parts=parts, dz=out)
            else:
                losses = Losses(lse, c[k], bound)
                add_gradient(plane_pairs, order, losses, losses, label, mode, parts=parts, dz=out)
            parts = parts[:1]
    return dz


def _pairs(planes: Planes, pairs: Pairs) -> PlanePairs:
    """Return the rows against themselves and what follows them."""
    num_rows = pairs.z.shape[0]
    num_cols = num_rows + (0 if pairs.refs is None else pairs.refs.shape[0])
    return PlanePairs(planes, planes, num_rows, num_cols, pairs.tau, excludes_self=True)


def _block_sums(pairs: PlanePairs, order: Order, label: Label) -> BlockSums | None:
    """Return where the sums of blocks of columns go, None if a label needs none."""
    has_classes = has_unit_weights(label.gamma, label.window)
    return BlockSums.of(pairs, order) if has_classes else None


def _order(label: Label, counted: Counted | None) -> Order:
    if counted is not None:
        return Order(counted.side, counted.side)
    if label.ref_values is None:
        return order_of(label.values, None, label.window)
    values = torch.cat([label.values, label.ref_values])
    return order_of(label.values, values, label.window, excludes_self=True)
