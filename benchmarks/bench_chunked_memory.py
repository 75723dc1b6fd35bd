"""How much memory do the chunked ops take beyond their inputs?

    python -m benchmarks.bench_chunked_memory --json benchmarks/results/cpu/chunked_memory.json

Forward and backward of the self-paced loss over N rows run once in a fresh process; the answer is
the peak of its resident memory above what it held with the inputs in place. The limit that the
command enforces is 600 MiB at N = 32,768 and D = 128, where one N x N float32 matrix takes 4 GiB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks._provenance import REPOSITORY, provenance
from spcl_fast import pair_lse, positive_pair_loss
from spcl_fast.testing import make_embeddings, make_labels

MODULE = "benchmarks.bench_chunked_memory"
LIMIT_MIB = 600.0


def status_mib(key: str) -> float:
    """Return a field of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status must have {key}, got none")


def step(z: torch.Tensor, labels: torch.Tensor, gamma: float) -> None:
    lse = pair_lse(z, 0.07, impl="chunked")
    out = positive_pair_loss(z, lse, labels, tau=0.07, gamma=gamma, mode="linear", impl="chunked")
    torch.autograd.grad(out.loss.mean(), z)


def measure(num_rows: int, dim: int, num_classes: int, threads: int) -> dict[str, float]:
    """Return the peak above the inputs and the time of one step, in this process."""
    torch.set_num_threads(threads)
    warm = make_embeddings(64, dim).requires_grad_()
    step(warm, make_labels(64, 4), gamma=8.0)
    z = make_embeddings(num_rows, dim).requires_grad_()
    labels = make_labels(num_rows, num_classes)
    before = status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    start = time.perf_counter()
    step(z, labels, gamma=12.0)
    seconds = time.perf_counter() - start
    return {"peak_mib": round(status_mib("VmHWM") - before, 1), "seconds": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=32768)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--classes", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--limit-mib", type=float, default=LIMIT_MIB)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", action="store_true", help="in this process, print JSON")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.n, args.dim, args.classes, args.threads)))
        return
    sizes = {"n": args.n, "dim": args.dim, "classes": args.classes, "threads": args.threads}
    flags = [text for key, value in sizes.items() for text in (f"--{key}", str(value))]
    child = subprocess.run(
        [sys.executable, "-m", MODULE, "--measure", *flags],
        cwd=REPOSITORY,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, Any] = provenance(MODULE, sys.argv[1:]) | sizes
    result |= json.loads(child.stdout)
    result |= {"one_matrix_mib": args.n**2 * 4 / 2**20, "limit_mib": args.limit_mib}
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(text + "\n", encoding="utf-8")
    if result["peak_mib"] > args.limit_mib:
        raise SystemExit(f"peak {result['peak_mib']} MiB exceeds {args.limit_mib} MiB")


if __name__ == "__main__":
    main()
