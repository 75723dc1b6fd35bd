"""The native ops are tested where they are built; inputs and comparisons of both op tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import native, pair_lse, positive_pair_loss
from spcl_fast.testing import assert_within_budget, similarity_rounding

Results = dict[str, Tensor]
VALUES = ("lse", "lse_refs", "loss")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if native.is_built():
        return
    for item in items:
        if "tests/native" in str(item.path) and "without_extension" not in item.name:
            item.add_marker(pytest.mark.skip(reason="spcl_fast._C is not built"))


@pytest.fixture(autouse=True)
def _default_tile_cache() -> Iterator[None]:
    mib = native.get_tile_cache_mib()
    yield
    native.set_tile_cache_mib(mib)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _values(tensors: Results) -> Results:
    return {key: x.detach() for key, x in tensors.items()}


def _gradients(leaves: dict[str, Tensor | None]) -> Results:
    return {key: x.grad for key, x in leaves.items() if x is not None and x.grad is not None}


def lse_results(z: Tensor, tau: float, impl: Any, refs: Tensor | None = None) -> Results:
    """Return lse and the gradients of a weighted sum of it in z, refs and tau."""
    z, tau_tensor = _leaf(z), _leaf(torch.tensor(tau, dtype=torch.float64))
    weights = torch.linspace(-1, 2, z.shape[0], dtype=torch.float64)
    if refs is None:
        out = {"lse": pair_lse(z, tau_tensor, impl=impl)}
        total = weights * out["lse"]
    else:
        refs = _leaf(refs)
        lse, lse_refs = pair_lse(z, tau_tensor, refs=refs, impl=impl)
        out = {"lse": lse, "lse_refs": lse_refs}
        ref_weights = torch.linspace(1, -2, refs.shape[0], dtype=torch.float64)
        total = torch.cat([weights * lse, ref_weights * lse_refs])
    total[total.isfinite()].sum().backward()  # type: ignore[no-untyped-call]
    leaves = {"dz": z, "dtau": tau_tensor, "drefs": refs}
    return _values(out) | _gradients(leaves)


def pair_loss_results(
    z: Tensor, lse: Tensor, labels: Tensor, tau: float, impl: Any, **options: Any
) -> Results:
    """Return loss, weights, counts and the gradients of a weighted sum of the loss."""
    z, lse = _leaf(z), _leaf(lse)
    tau_tensor = _leaf(torch.tensor(tau, dtype=torch.float64))
    if options.get("refs") is not None:
        options["refs"] = _leaf(options["refs"])
    out = positive_pair_loss(z, lse, labels, tau=tau_tensor, impl=impl, **options)
    total = (out.loss * torch.linspace(-1, 2, z.shape[0], dtype=torch.float64)).sum()
    total.backward()  # type: ignore[no-untyped-call]
    leaves = {"dz": z, "dlse": lse, "dtau": tau_tensor, "drefs": options.get("refs")}
    return _values(out._asdict()) | _gradients(leaves)


def compare(compute: Callable[[torch.dtype, str], Results], tau: float, factor: float = 2) -> None:
    """Hold `compute(float32, "native")` to the error of the reference, and to that of unit rows."""
    truth = compute(torch.float64, "reference")
    eager = compute(torch.float32, "reference")
    actual = compute(torch.float32, "native")
    assert actual.keys() == eager.keys()
    rounding = similarity_rounding(1 / tau)
    for key, value in actual.items():
        if key == "num_pos":
            assert torch.equal(value, truth[key])
        elif key == "dtau":  # a sum of terms of either sign: measured against their sizes
            size = sum(truth[x].abs().sum() for x in ("dz", "drefs") if x in truth) / tau
            error = abs(value - truth[key]), abs(eager[key] - truth[key])
            assert error[0] <= factor * error[1] + 1e-6 * size, (key, *error)
        else:
            size = 1.0 if key in VALUES else truth[key].abs().max().item()
            budget = {"factor": factor, "rounding": rounding * size}
            assert_within_budget(value, truth[key], eager[key], name=key, **budget)


def assert_close_to_truth(compute: Callable[[torch.dtype, str], Results], tau: float) -> None:
    """Hold `compute(float32, "native")` to the rounding of similarities up to 1 / tau.

    Eager's own error is no yardstick where a handful of values can all round the right way.
    """
    truth, actual = compute(torch.float64, "reference"), compute(torch.float32, "native")
    rounding = 2 * similarity_rounding(1 / tau)
    sizes = {key: x[x.isfinite()].abs().sum().item() for key, x in truth.items()}
    all_rows = sizes.get("dz", 0) + sizes.get("drefs", 0)  # whose terms cancel in a row's own sum
    for key, value in actual.items():
        if key == "dtau":  # may cancel to nothing
            continue
        atol = rounding * max(1, all_rows if key in ("dz", "drefs") else sizes[key])
        torch.testing.assert_close(value.to(truth[key].dtype), truth[key], rtol=1e-5, atol=atol)
