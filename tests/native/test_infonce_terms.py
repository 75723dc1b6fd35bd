"""InfoNCE that native computes in one op on a CPU, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spcl_fast import InfoNCELoss
from spcl_fast.ops import Impl, infonce_terms
from spcl_fast.testing import assert_within_budget, make_embeddings, similarity_rounding

TAU = 0.1


def values_of(anchors: Tensor, refs: Tensor, symmetric: bool, impl: Impl) -> dict[str, Tensor]:
    """Return every output and all gradients."""
    leaves = [x.clone().requires_grad_() for x in (anchors, refs)]
    loss = InfoNCELoss(TAU, symmetric, learnable_tau=True, impl=impl)
    out = loss(*leaves)
    gradients = torch.autograd.grad(out.loss, [*leaves, *loss.parameters()])
    values = dict(zip(("danchors", "drefs", "dlog_tau"), gradients, strict=True))
    return values | {x: y.detach() for x, y in out._asdict().items() if isinstance(y, Tensor)}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("num_rows", "others"), [(1, 0), (2, 0), (67, 0), (301, 0), (40, 25)])
def test_against_float64(symmetric: bool, num_rows: int, others: int) -> None:
    refs = make_embeddings(num_rows + others, 24, seed=1)
    anchors = make_embeddings(num_rows, 24) + refs[:num_rows]
    actual = values_of(anchors, refs, symmetric, "native")
    truth = values_of(anchors.double(), refs.double(), symmetric, "reference")
    eager = values_of(anchors, refs, symmetric, "reference")
    assert actual.keys() == truth.keys()
    for name, value in actual.items():
        size = truth[name].abs().max().item() if name.startswith("d") else 1.0
        rounding = 4 * similarity_rounding(1 / TAU) * max(size, 1 / num_rows)
        assert_within_budget(value, truth[name], eager[name], rounding=rounding, name=name)


def test_half_precision_rows_cost_only_the_rounding_of_their_gradients() -> None:
    rows = make_embeddings(40, 16).bfloat16(), make_embeddings(40, 16, seed=1).bfloat16()
    half = values_of(*rows, True, "native")
    same = values_of(rows[0].float(), rows[1].float(), True, "native")
    for name, value in half.items():
        assert torch.equal(value, same[name].to(value.dtype)), name
    assert half["danchors"].dtype == torch.bfloat16


@pytest.mark.parametrize("needed", ["anchors", "refs"])
def test_one_gradient_alone(needed: str) -> None:
    anchors, refs = make_embeddings(30, 8), make_embeddings(30, 8, seed=1)
    whole = values_of(anchors, refs, True, "native")[f"d{needed}"]
    leaf = (anchors if needed == "anchors" else refs).requires_grad_()
    out = InfoNCELoss(TAU, impl="native")(anchors, refs)
    (alone,) = torch.autograd.grad(out.loss, leaf)
    torch.testing.assert_close(alone, whole)


def test_nothing_to_compare_is_left_to_what_composes_it() -> None:
    z = make_embeddings(8, 4)
    assert infonce_terms(z, z, TAU, symmetric=True, impl="native") is not None
    assert infonce_terms(z[:0], z, TAU, symmetric=False, impl="native") is None


def test_op_refuses_too_few_references() -> None:
    z = make_embeddings(8, 4)
    with pytest.raises(ValueError, match="refs must have at least 8 rows, got 7"):
        torch.ops.spcl_fast.infonce_terms_fwd_native(z, z[:7], TAU, False, 0)
