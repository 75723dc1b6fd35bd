"""Errors of the Triton kernels against float64, and of eager PyTorch in the same dtype.

    TRITON_INTERPRET=1 python -m benchmarks.plane_errors

The self-paced loss of a batch: `lse`, `loss` and `dz` for every dtype, precision and some
temperatures and norms, of random rows and of clusters. The error of a draw is the largest one,
relative to the largest value, and a matter of luck: what is written is the root mean square over
some draws, which are the same for the kernels and for eager PyTorch. Eager float32 has products in
float32 for "highest" and in tf32 for "high" and "medium", which have the same planes. Without a GPU
kernels run in the interpreter, with products added as tensor cores do, and tf32 is float32 of
operands cut to 10 bits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._provenance import REPOSITORY, provenance, write_result
from spcl_fast import pair_lse, positive_pair_loss
from spcl_fast.testing import ProductsInTf32, make_clusters, make_embeddings

RESULT = REPOSITORY / "benchmarks" / "results" / "plane_errors.json"
NUM_ROWS, DIM, CLASSES, DRAWS = 61, 48, 6, 9
PRECISIONS = [(torch.bfloat16, "highest"), (torch.float16, "highest")]
PRECISIONS += [(torch.float32, "highest"), (torch.float32, "high")]
# Temperature, norm, rows.
BATCHES = [(10.0, 1e-3, "random"), (0.07, 1.0, "random"), (0.07, 1.0, "clusters")]
BATCHES += [(0.005, 1.0, "random"), (0.07, 30.0, "clusters"), (10.0, 1e3, "random")]
BATCHES += [(0.005, 1e3, "random")]
QUANTITIES = ("lse", "loss", "dz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float16", "float32"])
    parser.add_argument("--append", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        from tests import interpreter

        interpreter.repair()
        interpreter.add_in_steps()
    rows = []
    for (dtype, precision), batch in itertools.product(PRECISIONS, BATCHES):
        if str(dtype).removeprefix("torch.") in options.dtype:
            rows.append(measure(dtype, precision, *batch, device))
            print(rows[-1], flush=True)
    result = provenance("benchmarks.plane_errors", sys.argv[1:])
    result["device"] = torch.cuda.get_device_name() if device == "cuda" else "interpreter"
    result |= {"num_rows": NUM_ROWS, "dim": DIM, "draws": DRAWS, "rows": rows}
    write_result(options.json, result, append=options.append)


def measure(
    dtype: torch.dtype, precision: str, tau: float, norm: float, data: str, device: str
) -> dict[str, Any]:
    """Return the errors of the kernels and of eager PyTorch for one kind of batch."""
    torch.set_float32_matmul_precision(precision)
    how: Any = {"norm": norm, "dtype": dtype, "device": device}
    ours, eager = [], []
    for draw in range(DRAWS):
        seed = 2 * draw  # clusters take the next one too
        if data == "random":
            z = make_embeddings(NUM_ROWS, DIM, seed=seed, **how)
        else:
            z = make_clusters(NUM_ROWS, DIM, CLASSES, seed=seed, **how)
        truth = step(z.double(), tau, "reference")
        ours.append(errors(step(z, tau, "triton"), truth))
        in_tf32 = dtype == torch.float32 and precision != "highest"
        with ProductsInTf32() if in_tf32 else nullcontext():
            eager.append(errors(step(z, tau, "reference"), truth))
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "precision": precision,
        "tau": tau,
        "norm": norm,
        "data": data,
        "kernels": over_draws(ours),
        "eager": over_draws(eager),
    }


def step(z: Tensor, tau: float, impl: Any) -> dict[str, Tensor]:
    """Return lse, loss and gradient of the self-paced loss, weights decided by float64."""
    z = z.clone().requires_grad_()
    labels = torch.arange(len(z), device=z.device) % CLASSES
    lse = pair_lse(z, tau, impl=impl)
    assert isinstance(lse, Tensor)
    gamma = 2 * pair_lse(z.detach().double(), tau, impl="reference").abs().max().item()
    out = positive_pair_loss(z, lse, labels, tau=tau, gamma=gamma, mode="linear", impl=impl)
    (dz,) = torch.autograd.grad(out.loss.mean(), z)
    return {"lse": lse.detach(), "loss": out.loss.detach(), "dz": dz}


def errors(values: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest error of each value, relative to the largest value."""
    found = {}
    for name, value in values.items():
        wrong = (value.double() - truth[name]).abs().max().item()
        found[name] = wrong / truth[name].abs().max().item()
    return found


def over_draws(draws: list[dict[str, float]]) -> dict[str, float]:
    """Return the root of the mean square of each error."""
    found = {}
    for name in QUANTITIES:
        squares = [one[name] ** 2 for one in draws]
        found[name] = float(f"{math.sqrt(sum(squares) / len(squares)):.2e}")
    return found


def table() -> str:
    """Return the errors of every batch, of the kernels / of eager PyTorch."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    lines = ["| rows | precision | tau | norm | data | lse | loss | dz |"]
    lines.append("|---|---|---:|---:|---|---:|---:|---:|")
    for row in result["rows"]:
        cells = [str(row[key]) for key in ("dtype", "precision", "tau")]
        cells += [f"{row['norm']:g}", row["data"]]
        cells += [f"{row['kernels'][x]:.1e} / {row['eager'][x]:.1e}" for x in QUANTITIES]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
