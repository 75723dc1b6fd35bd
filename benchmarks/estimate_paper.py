"""What `spcl-fast reproduce acdc --scale paper` would take on an H100: estimated, not measured.

    python -m benchmarks.estimate_paper --json benchmarks/results/paper_estimate.json

Counts one step of every training of the comparison, with the preset acdc-paper on random slices,
on the CPU: flops (torch.utils.flop_counter), operators other than views, the numbers that these
read and write, and those saved for the backward. From these, two bounds on the time of a step on an
H100, by the assumptions in ASSUMED:

    fast    max(flops / rate, bytes / rate, operators x launch)
    slow    max(flops / rate + bytes / rate, operators x launch) + losses as first measured

with 2 bytes a number, as in bfloat16. The ceilings are those that an H100 reached (docs/gpu.md).
Scoring the test scans runs on the CPU; its time is measured here, on spheres.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._provenance import provenance, write_result
from benchmarks.bench_training import random_slices
from spcl_fast.segmentation.commands.comparison import ReproduceConfig
from spcl_fast.segmentation.commands.methods import (
    DECODERS,
    METHODS,
    encoder_config,
    method_config,
)
from spcl_fast.segmentation.evaluate.metrics import scores_per_class
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.finetune.step import FinetuneTrainer
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.step import PretrainTrainer
from spcl_fast.segmentation.runs.config import preset
from spcl_fast.segmentation.runs.network import encoder_metadata, make_network
from spcl_fast.segmentation.runs.run import save_weights

CEILINGS = {"bf16_flops_per_s": 780e12, "copy_bytes_per_s": 3.0e12}
ASSUMED = {
    "fast": {"flops_share": 0.4, "copy_share": 0.8, "launch_us": 4.0, "loss_ms": 0.0},
    "slow": {"flops_share": 0.1, "copy_share": 0.4, "launch_us": 10.0, "loss_ms": 3.44},
}
BYTES = 2  # of a number in bfloat16
COUNTS = 3  # of labelled scans: 1, 2 and 4
TEST_SCANS = 18  # of nine patients
SHAPE, SPACING_MM = (10, 256, 216), (10.0, 1.5, 1.5)  # of a scan of ACDC
Step = Callable[[], object]


class Traffic(TorchDispatchMode):
    """Counts operators other than views, and the numbers that they read and write."""

    operators = numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operator and run it."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = tree_leaves((args, kwargs, result))
            self.operators += 1
            self.numbers += sum(x.numel() for x in leaves if isinstance(x, Tensor))
        return result


def counted(step: Step, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return what a step amounts to, with all parameters updated together, as on a GPU."""
    for group in optimizer.param_groups:
        group["foreach"] = True
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
        return x

    flops, traffic = FlopCounterMode(display=False), Traffic()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), flops, traffic:
        step()
    return {
        "gflops": round(1e-9 * flops.get_total_flops(), 1),
        "gbytes": round(1e-9 * BYTES * traffic.numbers, 2),
        "operators": traffic.operators,
        "saved_gib": round(BYTES * sum(kept.values()) / 2**30, 2),
    }


def step_ms(row: Mapping[str, float], losses: int, how: str) -> float:
    """Return the milliseconds of a step with so many contrastive losses, by ASSUMED[how]."""
    assumed = ASSUMED[how]
    flops = 1e9 * row["gflops"] / (assumed["flops_share"] * CEILINGS["bf16_flops_per_s"])
    bytes_ = 1e9 * row["gbytes"] / (assumed["copy_share"] * CEILINGS["copy_bytes_per_s"])
    device = max(flops, bytes_) if how == "fast" else flops + bytes_
    host = 1e-6 * row["operators"] * assumed["launch_us"]
    return 1e3 * max(device, host) + losses * assumed["loss_ms"]


class Training(NamedTuple):
    """A training of the comparison."""

    step: Step
    optimizer: torch.optim.Optimizer
    losses: int  # contrastive ones in a step
    steps: int
    runs: int


def pretrainings(config: ReproduceConfig, folder: Path) -> Iterator[tuple[str, Training]]:
    """Return every pre-training; a folder takes an encoder for the decoders' stage."""
    first = preset(PretrainConfig, "acdc-paper")
    used = dict.fromkeys(e for m in config.methods if (e := METHODS[m].encoder))
    below = dict.fromkeys(DECODERS[e] for e in used if e in DECODERS)
    encoder = make_network(first.model).encoder.state_dict()
    save_weights(folder / "encoder.safetensors", encoder, encoder_metadata(first.model))
    size = first.data.grid.size
    for name in {**below, **used}:
        one = replace(encoder_config(first, name, folder), precision="float32")
        trainer = PretrainTrainer(one, random_slices(size, 2 * one.num_scans), torch.device("cpu"))
        steps = one.epochs * one.steps_per_epoch
        losses = len(one.loss.labels)
        kept = (trainer.train_step, trainer.optimizer)
        yield name, Training(*kept, losses, steps, config.seeds)


def finetunings(config: ReproduceConfig) -> Iterator[tuple[str, Training]]:
    """Return every fine-tuning."""
    second = preset(FinetuneConfig, "acdc-paper")
    slices = random_slices(second.data.grid.size, 4)
    for method in config.methods:
        two = replace(method_config(second, METHODS[method]), precision="float32")
        trainer = FinetuneTrainer(two, slices, torch.device("cpu"))
        step = functools.partial(trainer.train_step, slices.images, slices.masks)
        kept, losses = (step, trainer.optimizer), int(two.semi.contrast > 0)
        yield method, Training(*kept, losses, two.steps, config.seeds * COUNTS)


def row_of(name: str, training: Training) -> dict[str, Any]:
    """Return what a training amounts to, and its hours in all runs."""
    row: dict[str, Any] = {"training": name, "steps": training.steps, "runs": training.runs}
    row |= counted(training.step, training.optimizer)
    for how in ASSUMED:
        row[f"{how}_ms"] = round(step_ms(row, training.losses, how), 2)
        row[f"{how}_hours"] = round(row[f"{how}_ms"] * training.steps * training.runs / 3.6e6, 3)
    print(row, flush=True)
    return row


def scoring_s() -> float:
    """Return the CPU seconds that Dice and HD95 of a scan take."""
    axes = (torch.linspace(-1, 1, side) for side in SHAPE)
    radius = sum(x.square() for x in torch.meshgrid(*axes, indexing="ij")).sqrt()
    mask, found = ((3 - (4 + shift) * radius).clamp_min(0).ceil() for shift in (0.0, 0.3))
    scores_per_class(found.long(), mask.long(), SPACING_MM, 4)  # imports
    start = time.process_time()
    scores_per_class(found.long(), mask.long(), SPACING_MM, 4)
    return round(time.process_time() - start, 2)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args(arguments)
    config = ReproduceConfig("acdc", Path("ACDC"), scale="paper")
    with tempfile.TemporaryDirectory() as folder:
        first = [row_of(*one) for one in pretrainings(config, Path(folder))]
    second = [row_of(*one) for one in finetunings(config)]
    rows, scoring = first + second, scoring_s()
    hours = {how: round(sum(row[f"{how}_hours"] for row in rows), 1) for how in ASSUMED}
    scored = sum(row["runs"] for row in second) * TEST_SCANS
    hours["scoring"] = round(scored * scoring / 3600, 1)
    given = sys.argv[1:] if arguments is None else list(arguments)
    result = provenance("benchmarks.estimate_paper", given)
    result |= {"ceilings": CEILINGS, "assumed": ASSUMED, "scoring_s_of_a_scan": scoring}
    result |= {"hours": hours, "pretraining": first, "finetuning": second}
    write_result(args.json, result, append=False)
    print(hours)


if __name__ == "__main__":
    main()
