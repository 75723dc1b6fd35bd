"""`positive_pair_loss`: by hand, the reference against a double loop, chunked against it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import pair_lse, positive_pair_loss
from spcl_fast.chunked import _panels
from spcl_fast.testing import (
    assert_within_budget,
    make_embeddings,
    make_labels,
    similarity_rounding,
)

IMPLS = ["reference", "chunked"]
WITH_TRITON = [*IMPLS, "triton"]  # where a few rows in float32 will do
MODES = ["hard", "linear"]


def value_and_gradients(
    z: Tensor, lse: Tensor, labels: Tensor, tau: float, impl: Any, **options: Any
) -> dict[str, Tensor]:
    """Return the outputs and the gradients of a weighted sum of the loss, lse held apart."""
    z, wide = z.clone().requires_grad_(), torch.promote_types(z.dtype, torch.float32)
    lse = lse.to(wide).clone().requires_grad_()
    tau_tensor = torch.tensor(tau, dtype=wide, requires_grad=True)
    if options.get("refs") is not None:
        options["refs"] = options["refs"].clone().requires_grad_()
    out = positive_pair_loss(z, lse, labels, tau=tau_tensor, impl=impl, **options)
    (torch.linspace(-1, 2, z.shape[0], dtype=wide) * out.loss).sum().backward()
    named: dict[str, Any] = {
        "loss": out.loss.detach(),
        "weight_sum": out.weight_sum,
        "num_pos": out.num_pos,
        "dz": z.grad,
        "dlse": lse.grad,
        "dtau": tau_tensor.grad,
    }
    if options.get("refs") is not None:
        named["drefs"] = options["refs"].grad
    return named


@pytest.mark.parametrize("impl", WITH_TRITON)
def test_by_hand(impl: Any) -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    lse = torch.tensor([3.0, 4.0, 5.0, 6.0, 7.0])
    labels = torch.tensor([0, 0, 0, 1, -1])
    # tau = 0.5: s_01 = 0, s_02 = 2, s_12 = 0, so l_01 = 3, l_02 = 1, l_10 = 4, l_12 = 4,
    # l_20 = 3, l_21 = 5
    hard = positive_pair_loss(z, lse, labels, tau=0.5, gamma=3.0, mode="hard", impl=impl)
    assert hard.loss.tolist() == [2.0, 0.0, 1.5, 0.0, 0.0]
    assert hard.weight_sum.tolist() == [2.0, 0.0, 1.0, 0.0, 0.0]
    assert hard.num_pos.tolist() == [2, 2, 2, 0, 0]
    linear = positive_pair_loss(z, lse, labels, tau=0.5, gamma=4.0, mode="linear", impl=impl)
    assert linear.weight_sum.tolist() == [1.0, 0.0, 0.25, 0.0, 0.0]
    assert linear.loss.tolist() == [0.75, 0.0, 0.375, 0.0, 0.0]
    plain = positive_pair_loss(z, lse, labels, tau=0.5, gamma=math.inf, mode="hard", impl=impl)
    assert plain.loss.tolist() == [2.0, 4.0, 4.0, 0.0, 0.0]
    assert plain.weight_sum.tolist() == [2.0, 2.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("impl", WITH_TRITON)
def test_window_by_hand(impl: Any) -> None:
    # Exact in float64: 0.5 - 0.25 is a quarter, so the border belongs to the window.
    labels = torch.tensor([0.0, 0.25, 0.5, math.nan, -0.1, 0.875])
    out = positive_pair_loss(
        torch.zeros(6, 2),
        torch.arange(1.0, 7.0),
        labels,
        tau=1.0,
        gamma=math.inf,
        mode="hard",
        window=0.25,
        impl=impl,
    )
    assert out.num_pos.tolist() == [1, 2, 1, 0, 0, 0]
    assert out.loss.tolist() == [1.0, 2.0, 3.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("window", [None, 1])
def test_reference_equals_a_double_loop(mode: Any, window: float | None) -> None:
    z, labels = make_embeddings(9, 3, dtype=torch.float64), make_labels(9, 4, unknown_share=0.2)
    refs, ref_labels = make_embeddings(6, 3, dtype=torch.float64, seed=1), make_labels(6, 4, seed=1)
    lse, tau, gamma = pair_lse(z, 0.3), 0.3, 3.0
    for others, other_labels in ((None, None), (refs, ref_labels)):
        out = positive_pair_loss(
            z,
            lse,
            labels,
            tau=tau,
            gamma=gamma,
            mode=mode,
            window=window,
            refs=others,
            ref_labels=other_labels,
            impl="reference",
        )
        for i in range(9):
            total = weights = count = 0.0
            for j in range(9 if others is None else 6):
                y_i = int(labels[i])
                y_j = int(labels[j] if other_labels is None else other_labels[j])
                if (others is None and i == j) or min(y_i, y_j) < 0:
                    continue
                if y_i != y_j if window is None else abs(y_i - y_j) > window:
                    continue
                loss = float(lse[i]) - float(z[i] @ (z if others is None else others)[j]) / tau
                weight = float(loss <= gamma) if mode == "hard" else max(0.0, 1 - loss / gamma)
                total, weights, count = total + weight * loss, weights + weight, count + 1
            assert out.num_pos[i].item() == count
            assert out.weight_sum[i].item() == pytest.approx(weights, abs=1e-12)
            assert out.loss[i].item() == pytest.approx(total / max(count, 1), abs=1e-12)


def objective(
    z: Tensor, lse: Tensor, labels: Tensor, tau: Tensor, gamma: float, mode: str, window: Any
) -> Tensor:
    """Return sum over rows of 1/|P| sum_j min_w [w l + R(w)], in closed form."""
    loss = lse[:, None] - z @ z.T / tau
    far = (labels[:, None] - labels).abs() > (window or 0)
    positive = ~far & (labels >= 0)[:, None] & (labels >= 0) & ~torch.eye(len(z), dtype=torch.bool)
    if mode == "hard":
        best = (loss - gamma).clamp_max(0)
    else:
        best = torch.where(loss <= gamma, loss - loss**2 / (2 * gamma) - gamma / 2, 0)
    rows = torch.where(positive, best, 0).sum(1) / positive.sum(1).clamp_min(1)
    return rows @ torch.linspace(1, 2, len(z), dtype=z.dtype)


@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("impl", IMPLS)
def test_gradient_is_that_of_the_objective(mode: Any, window: Any, impl: Any) -> None:
    # The envelope theorem: w is a constant for the gradient, yet min_w is what falls.
    z, labels = make_embeddings(21, 3, dtype=torch.float64), make_labels(21, 4, unknown_share=0.1)
    lse, tau = pair_lse(z, 0.3), torch.tensor(0.3, dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for x in (z, lse, tau)]
    out = positive_pair_loss(
        leaves[0],
        leaves[1],
        labels,
        tau=leaves[2],
        gamma=3.1,
        mode=mode,
        window=window,
        impl=impl,
    )
    assert 0.1 < float(out.weight_sum.sum() / out.num_pos.sum()) < 0.9
    (out.loss @ torch.linspace(1, 2, 21, dtype=torch.float64)).backward()
    step = 1e-6
    for leaf in leaves:
        flat = leaf.detach().view(-1)
        for k in range(flat.numel()):
            values = []
            for sign in (1, -1):
                kept = flat[k].item()
                flat[k] = kept + sign * step
                args = [x.detach() for x in leaves]
                values.append(objective(args[0], args[1], labels, args[2], 3.1, mode, window))
                flat[k] = kept
            numeric = float(values[0] - values[1]) / (2 * step)
            assert leaf.grad is not None
            assert leaf.grad.view(-1)[k].item() == pytest.approx(numeric, rel=1e-5, abs=1e-7)


@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck_with_weights_of_one(window: float | None, impl: Any) -> None:
    z = make_embeddings(19, 3, dtype=torch.float64).requires_grad_()
    refs = make_embeddings(8, 3, dtype=torch.float64, seed=1).requires_grad_()
    lse = pair_lse(z, 0.3).detach().requires_grad_()
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    labels, ref_labels = make_labels(19, 4, unknown_share=0.1), make_labels(8, 4, seed=1)

    def square(z: Tensor, lse: Tensor, tau: Tensor) -> Tensor:
        return positive_pair_loss(
            z, lse, labels, tau=tau, gamma=math.inf, mode="hard", window=window, impl=impl
        ).loss

    def rectangular(z: Tensor, lse: Tensor, tau: Tensor, refs: Tensor) -> Tensor:
        return positive_pair_loss(
            z,
            lse,
            labels,
            tau=tau,
            gamma=math.inf,
            mode="hard",
            window=window,
            refs=refs,
            ref_labels=ref_labels,
            impl=impl,
        ).loss

    assert torch.autograd.gradcheck(square, (z, lse, tau))
    assert torch.autograd.gradcheck(rectangular, (z, lse, tau, refs))


def gap_gamma(z: Tensor, lse: Tensor, tau: float) -> float:
    """Return a pace in the middle of a wide gap between pair losses: no rounding crosses it."""
    losses = (lse.double()[:, None] - z.double() @ z.double().T / tau).flatten().sort().values
    middle = losses[len(losses) // 3 : 2 * len(losses) // 3 + 1]
    if len(middle) < 2:
        return 1.0
    k = int(middle.diff().argmax())
    return max(float(middle[k] + middle[k + 1]) / 2, 1e-3)


def label_cases(num_rows: int) -> dict[str, tuple[Tensor, float | None]]:
    """Return labels by what is special about them, each with its window."""
    position = torch.linspace(0, 1, num_rows)[torch.randperm(num_rows)]
    return {
        "a few classes, some unknown": (make_labels(num_rows, 7, unknown_share=0.2), None),
        "one class": (torch.zeros(num_rows, dtype=torch.int64), None),
        "all distinct": (torch.randperm(num_rows), None),
        "all unknown": (torch.full((num_rows,), -1), None),
        "small integers": (make_labels(num_rows, 3).to(torch.int8), None),
        "far apart": (make_labels(num_rows, 5) * 10**17, None),
        "float window": (position.masked_fill(position < 0.1, -1), 0.15),
        "NaN and infinity": (
            position.masked_fill(position < 0.2, math.nan) / (position < 0.9),
            0.1,
        ),
        "integer window": (make_labels(num_rows, 20, unknown_share=0.1), 2),
        "window of zero": (make_labels(num_rows, 5).float(), 0.0),
    }


# 1, 2: no pair, one pair. 67: many ragged panels. The labels: see label_cases.
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("name", list(label_cases(1)))
@pytest.mark.parametrize("num_rows", [1, 2, 67])
@pytest.mark.parametrize("mode", MODES)
def test_chunked_equals_reference(mode: Any, num_rows: int, name: str) -> None:
    labels, window = label_cases(num_rows)[name]
    z = make_embeddings(num_rows, 5, dtype=torch.float64)
    lse = pair_lse(z, 0.1)
    for gamma in (gap_gamma(z, lse, 0.1), math.inf):
        options = {"gamma": gamma, "mode": mode, "window": window}
        exact = value_and_gradients(z, lse, labels, 0.1, "reference", **options)
        for key, value in value_and_gradients(z, lse, labels, 0.1, "chunked", **options).items():
            torch.testing.assert_close(value, exact[key], rtol=1e-10, atol=1e-11, msg=key)


# References: none with a label of the rows, one, more and fewer than rows.
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("num_refs", [1, 13, 90])
@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("num_classes", [1, 6, 500])
def test_chunked_equals_reference_with_refs(
    num_refs: int, window: float | None, num_classes: int
) -> None:
    z, labels = make_embeddings(67, 5, dtype=torch.float64), make_labels(67, num_classes)
    labels[::9] = -1
    refs = make_embeddings(num_refs, 5, dtype=torch.float64, seed=1)
    ref_labels = make_labels(num_refs, num_classes, unknown_share=0.2, seed=1)
    lse = pair_lse(z, 0.1, refs=refs)[0]
    for gamma in (gap_gamma(z, lse, 0.1), math.inf):
        options = {"gamma": gamma, "mode": "linear", "window": window}
        options |= {"refs": refs, "ref_labels": ref_labels}
        exact = value_and_gradients(z, lse, labels, 0.1, "reference", **options)
        for key, value in value_and_gradients(z, lse, labels, 0.1, "chunked", **options).items():
            torch.testing.assert_close(value, exact[key], rtol=1e-10, atol=1e-11, msg=key)


# tau: one-hot, usual, flat softmax. gamma: weights between 0 and 1, the class sums.
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("tau", [0.005, 0.07, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("is_paced", [True, False])
def test_every_dtype(tau: float, dtype: torch.dtype, mode: Any, is_paced: bool) -> None:
    z, labels = make_embeddings(67, 16, dtype=dtype), make_labels(67, 6, unknown_share=0.1)
    lse = pair_lse(z.double(), tau)
    options = {"gamma": gap_gamma(z, lse, tau) if is_paced else math.inf, "mode": mode}
    truth = value_and_gradients(
        z.double(), lse.float().double(), labels, tau, "reference", **options
    )
    eager = value_and_gradients(z, lse.float(), labels, tau, "reference", **options)
    rounding = similarity_rounding(1 / tau)
    for key, value in value_and_gradients(
        z, lse.float(), labels, tau, "chunked", **options
    ).items():
        if key == "dtau":  # a sum of terms of either sign: measured against their sizes
            size = (z.double() * truth["dz"]).abs().sum().item() / tau
            assert abs(value.item() - truth[key].item()) <= 1e-5 * size
        else:
            # weights are off by the rounding of a pair loss, relative to the pace
            size = truth[key].abs().max().item() / options["gamma"] if key != "loss" else 1.0
            budget = {"factor": 3, "rounding": rounding * size}
            assert_within_budget(value, truth[key].double(), eager[key], name=key, **budget)


# 1e3 at tau 0.005: similarities of 2e8, where float32 resolves no more than 16.
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("norm", [1e-3, 1e2, 1e3])
@pytest.mark.parametrize("tau", [0.005, 10.0])
def test_any_norm(norm: float, tau: float) -> None:
    z, labels = make_embeddings(67, 5, norm=norm), make_labels(67, 6)
    lse = pair_lse(z.double(), tau).float()
    options = {"gamma": gap_gamma(z, lse, tau), "mode": "linear"}
    truth = value_and_gradients(z.double(), lse.double(), labels, tau, "reference", **options)
    eager = value_and_gradients(z, lse, labels, tau, "reference", **options)
    for key, value in value_and_gradients(z, lse, labels, tau, "chunked", **options).items():
        size = truth[key].abs().max().item() / options["gamma"] if key != "loss" else 1.0
        budget = {"factor": 10, "rounding": similarity_rounding(norm**2 / tau) * size}
        assert_within_budget(value, truth[key].double(), eager[key], name=key, **budget)


@pytest.mark.usefixtures("small_panels")
def test_a_tensor_gamma_equals_a_number() -> None:
    z, labels = make_embeddings(30, 4, dtype=torch.float64), make_labels(30, 4)
    lse = pair_lse(z, 0.1)
    for gamma in (4.0, math.inf):
        for mode in MODES:
            options = {"mode": mode}
            number = value_and_gradients(z, lse, labels, 0.1, "chunked", gamma=gamma, **options)
            tensor = value_and_gradients(
                z, lse, labels, 0.1, "chunked", gamma=torch.tensor(gamma), **options
            )
            for key, value in tensor.items():
                torch.testing.assert_close(value, number[key], msg=key)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_collapsed_embedding_costs_log_of_the_other_rows(impl: Any) -> None:
    z = make_embeddings(1, 8).expand(50, 8)
    out = positive_pair_loss(
        z,
        pair_lse(z, 0.07),
        make_labels(50, 3),
        tau=0.07,
        gamma=math.inf,
        mode="hard",
        window=0,
        impl=impl,
    )
    torch.testing.assert_close(out.loss, torch.full((50,), math.log(49)), rtol=0, atol=4e-6)


def test_mean_loss_is_at_least_the_log_of_the_positives() -> None:
    for seed in range(5):
        z, labels = make_embeddings(60, 4, seed=seed), make_labels(60, 4, seed=seed)
        out = positive_pair_loss(
            z, pair_lse(z, 0.07), labels, tau=0.07, gamma=math.inf, mode="hard"
        )
        assert (out.loss >= out.num_pos.float().log()).all()


@pytest.mark.parametrize("impl", WITH_TRITON)
def test_no_rows(impl: Any) -> None:
    out = positive_pair_loss(
        torch.ones(0, 3),
        torch.ones(0),
        torch.ones(0, dtype=torch.int64),
        tau=0.1,
        gamma=2.0,
        mode="linear",
        impl=impl,
    )
    assert [tuple(x.shape) for x in out] == [(0,), (0,), (0,)]


def test_only_the_loss_is_differentiable_and_double_backward_raises() -> None:
    z = make_embeddings(10, 3).requires_grad_()
    lse = pair_lse(z, 0.1)
    options: dict[str, Any] = {"tau": 0.1, "gamma": 3.0, "mode": "linear"}
    out = positive_pair_loss(z, lse, make_labels(10, 2), impl="chunked", **options)
    assert out.loss.requires_grad
    assert not out.weight_sum.requires_grad
    (dz,) = torch.autograd.grad(out.loss.sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative needs"):
        dz.sum().backward()


def test_reference_can_be_differentiated_twice() -> None:
    z = make_embeddings(6, 2, dtype=torch.float64).requires_grad_()

    def loss(z: Tensor) -> Tensor:
        lse = pair_lse(z, 0.5, impl="reference")
        return positive_pair_loss(
            z,
            lse,
            make_labels(6, 2),
            tau=0.5,
            gamma=math.inf,
            mode="hard",
            impl="reference",
        ).loss

    assert torch.autograd.gradgradcheck(loss, (z,))


@pytest.mark.usefixtures("small_panels")
def test_each_gradient_alone() -> None:
    refs, ref_labels = make_embeddings(9, 4, seed=1), make_labels(9, 3, seed=1)
    z, labels = make_embeddings(20, 4), make_labels(20, 3)
    lse = pair_lse(z, 0.2, refs=refs)[0]
    for gamma in (3.0, math.inf):
        full = value_and_gradients(
            z,
            lse,
            labels,
            0.2,
            "chunked",
            gamma=gamma,
            mode="linear",
            refs=refs,
            ref_labels=ref_labels,
        )
        for name in ("dz", "dlse", "dtau", "drefs"):
            leaves = {"dz": z, "dlse": lse, "dtau": torch.tensor(0.2), "drefs": refs}
            leaves = {key: x.clone() for key, x in leaves.items()}
            leaf = leaves[name].requires_grad_()
            out = positive_pair_loss(
                leaves["dz"],
                leaves["dlse"],
                labels,
                tau=leaves["dtau"],
                gamma=gamma,
                mode="linear",
                refs=leaves["drefs"],
                ref_labels=ref_labels,
                impl="chunked",
            )
            (torch.linspace(-1, 2, 20) * out.loss).sum().backward()
            torch.testing.assert_close(leaf.grad, full[name], msg=name)


def test_intervals_are_covered_once_and_little_else_is_visited() -> None:
    last: list[int] = []
    num_rows = 5000
    for count in (1, 2, 3000, 997, 1000):  # classes of very unequal size
        last += [len(last) + count] * count
    seen = torch.zeros(num_rows, num_rows, dtype=torch.int8)
    for r0, r1, c0, c1 in _panels.interval_panels(list(range(num_rows)), last, 1 << 18):
        assert (r1 - r0) * (c1 - c0) <= 1 << 18
        seen[r0:r1, c0:c1] += 1
    for i in range(0, num_rows, 7):
        assert (seen[i, i : last[i]] == 1).all()
    useful = sum(stop - row for row, stop in enumerate(last))
    assert int(seen.sum()) < 1.3 * useful


def bad_calls() -> list[tuple[type[Exception], str, dict[str, Any]]]:
    z, labels = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    refs = {"refs": z, "ref_labels": labels}
    return [
        (TypeError, "z must be floating", {"z": z.long()}),
        (ValueError, "tau must be finite", {"tau": -1.0}),
        (ValueError, "gamma must be above 0", {"gamma": 0.0}),
        (ValueError, "gamma must be above 0", {"gamma": math.nan}),
        (ValueError, "gamma must be a number or a 0-dim", {"gamma": torch.ones(2)}),
        (TypeError, "gamma must be a number", {"gamma": None}),
        (ValueError, "mode must be one of hard, linear", {"mode": "soft"}),
        (ValueError, "window must be finite", {"window": -0.1}),
        (ValueError, "window must be finite", {"window": math.inf}),
        (ValueError, "labels must be .4,", {"labels": labels[:3]}),
        (TypeError, "labels must be integer", {"labels": labels.float()}),
        (TypeError, "labels must be real", {"labels": labels.to(torch.complex64), "window": 1.0}),
        (ValueError, "labels must be on the device", {"labels": labels.to("meta")}),
        (ValueError, "lse must be float32 or float64 .4,", {"lse": torch.ones(3)}),
        (ValueError, "lse must be float32", {"lse": torch.ones(4).half()}),
        (ValueError, "lse must be on the device", {"lse": torch.ones(4, device="meta")}),
        (ValueError, "got refs alone", {"refs": z}),
        (ValueError, "got ref_labels alone", {"ref_labels": labels}),
        (TypeError, "refs must have the dtype", refs | {"refs": z.double()}),
        (ValueError, "ref_labels must be .4,", refs | {"ref_labels": labels[:3]}),
        (TypeError, "ref_labels must be integer", refs | {"ref_labels": labels.float()}),
        (ValueError, "impl must be one of", {"impl": "fast"}),
    ]


@pytest.mark.parametrize(("error", "message", "change"), bad_calls())
def test_raises(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "z": torch.ones(4, 2),
        "lse": torch.ones(4),
        "labels": torch.zeros(4, dtype=torch.int64),
        "tau": 0.1,
        "gamma": 3.0,
        "mode": "linear",
    }
    with pytest.raises(error, match=message):
        positive_pair_loss(**good | change)
