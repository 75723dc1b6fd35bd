"""Optional: time candidate configurations on this GPU and keep the fastest on disk.

    tune("pair_lse_fwd", candidates, lambda: pair_lse_fwd(z, None, 0.07), z.dtype, 128, z.device)
    use_tuned_configs(enabled=True)

Nothing is timed or read unless one of the two is called.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import triton
from triton.runtime.errors import OutOfResources

from spcl_fast.atomic_file import atomic_file
from spcl_fast.kernels._configs import Config, dtype_name, tuned

Timer = Callable[[Callable[[], object]], float]
_ROUNDS = 9


def cuda_milliseconds(run: Callable[[], object]) -> float:
    """Return the milliseconds that `run` takes on the current CUDA stream, after a warm-up."""
    run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def tune(
    kernel: str,
    candidates: Sequence[Config],
    run: Callable[[], object],
    dtype: torch.dtype,
    block_d: int,
    device: torch.device,
    *,
    timer: Timer = cuda_milliseconds,
    folder: Path | None = None,
) -> Config:
    """Return the candidate with the lowest median time, and store it for `use_tuned_configs`.

    Args:
        kernel: the name under which `run` asks `pick` for the timed configuration.
        candidates: tried in turns; those that need more resources than this GPU has are left out.
        run: launches the kernel.
        dtype: of the rows in `run`.
        block_d: padded features in `run`.
        device: of the rows in `run`.
        timer: returns the milliseconds of one call.
        folder: of the stored configurations; ~/.cache/spcl_fast if None.

    Raises:
        RuntimeError: kernels do not run on a GPU here, or no candidate fits.
    """
    facts = {"gpu": _gpu(device), "triton": triton.__version__, "kernel": kernel}
    key = (kernel, dtype_name(dtype), block_d)
    before = tuned.get(key)
    times: dict[Config, list[float]] = {config: [] for config in candidates}
    try:
        for _ in range(_ROUNDS):
            for config in list(times):
                tuned[key] = config
                try:
                    times[config].append(timer(run))
                except OutOfResources:
                    del times[config]
    finally:
        tuned.pop(key)
        if before is not None:
            tuned[key] = before
    if not times:
        raise RuntimeError(f"candidates must have one that fits the GPU, got {candidates}")
    medians = {config: statistics.median(values) for config, values in times.items()}
    best = min(medians, key=medians.__getitem__)
    facts |= {"dtype": key[1], "block_d": block_d, "milliseconds": medians[best]}
    _write(folder or _user_folder(), facts | {"config": asdict(best)})
    return best


def use_tuned_configs(*, enabled: bool, folder: Path | None = None) -> None:
    """Let `pick` prefer, or no longer prefer, what `tune` stored for this GPU and Triton version.

    Args:
        enabled: False returns to the tables.
        folder: of the stored configurations; ~/.cache/spcl_fast if None.

    Raises:
        RuntimeError: kernels do not run on a GPU here.
    """
    tuned.clear()
    if not enabled:
        return
    here = {"gpu": _gpu(torch.device("cuda")), "triton": triton.__version__}
    for path in sorted((folder or _user_folder()).glob("*.json")):
        entry = json.loads(path.read_text())
        if here.items() <= entry.items():
            tuned[entry["kernel"], entry["dtype"], entry["block_d"]] = Config(**entry["config"])


def _gpu(device: torch.device) -> str:
    interpreted = triton.knobs.runtime.interpret
    if interpreted or device.type != "cuda" or not torch.cuda.is_available():
        raise RuntimeError(f"device must be a GPU that runs the kernels, got {device}")
    return torch.cuda.get_device_name(device)


def _user_folder() -> Path:
    return Path.home() / ".cache" / "spcl_fast"


def _write(folder: Path, entry: dict[str, object]) -> None:
    """Write one file per entry: two processes may tune at once."""
    parts = (entry[name] for name in ("gpu", "triton", "kernel", "dtype", "block_d"))
    name = re.sub(r"[^\w.]+", "-", " ".join(map(str, parts)))
    with atomic_file(folder / f"{name}.json") as partial:
        partial.write_text(json.dumps(entry, indent=1), encoding="utf-8")
