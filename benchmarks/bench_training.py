"""Images a second of a training step, and where its time goes.

    python -m benchmarks.bench_training --json benchmarks/results/cpu/training.json
    python -m benchmarks.bench_training --device cuda

A step of the pre-training and of the fine-tuning of a preset on random slices, in turns with its
parts by themselves: the network (forward and backward of the same views, from a given gradient; the
ceiling of images a second), the loss (heads included), the batch (drawing, indexing and augmenting
the slices) and the optimiser. Shares are of the whole step; what they lack of 1 is zeroing
gradients and glue. `host` is the CPU time until the step returns, without waiting for the device.
--compile measures the step compiled and not, in turns. On a CPU it is one thread and its CPU time,
which other programs do not lengthen.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks._provenance import REPOSITORY, provenance, write_result
from benchmarks.device import DEVICES, Cpu, Device
from benchmarks.measure import time_steps
from spcl_fast.segmentation.data.augment import augment
from spcl_fast.segmentation.data.slices import Slices
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.finetune.step import FinetuneTrainer
from spcl_fast.segmentation.finetune.supervised import supervised_loss
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.step import PretrainTrainer
from spcl_fast.segmentation.runs.config import preset_path, stage_config
from spcl_fast.segmentation.runs.device import autocast

SLICES_PER_SCAN = 9
PARTS = ("network", "loss", "batch", "optimiser")
Row = dict[str, Any]
Steps = dict[str, Callable[[], object]]


class Work(NamedTuple):
    """A training step, "step", and its parts by their names."""

    images: int
    steps: Steps


class OneThread(Cpu):
    """The CPU time of one thread."""

    def time_ms(self, run: Callable[[], object]) -> float:
        start = time.process_time()
        run()
        return 1e3 * (time.process_time() - start)


def random_slices(size: int, num_scans: int) -> Slices:
    """Return slices of noise with the columns of real ones."""
    n = num_scans * SLICES_PER_SCAN
    generator = torch.Generator().manual_seed(0)
    scan = torch.arange(num_scans).repeat_interleave(SLICES_PER_SCAN)
    return Slices(
        scans=(),
        images=torch.rand(n, 1, size, size, generator=generator),
        masks=torch.randint(4, (n, size, size), generator=generator, dtype=torch.uint8),
        scan=scan,
        slice_index=torch.arange(SLICES_PER_SCAN).repeat(num_scans),
        num_slices=torch.full((n,), SLICES_PER_SCAN),
        meta={"patient": scan // 2, "phase": scan % 2},
        categories={"patient": [f"{k:03d}" for k in range(num_scans)], "phase": ["ED", "ES"]},
    )


def pretraining(config: PretrainConfig, device: torch.device) -> Work:
    """Return the step and its parts."""
    slices = random_slices(config.data.grid.size, 2 * config.num_scans).to(device)
    trainer = PretrainTrainer(config, slices, device)
    trainer.train_step()
    batch = trainer._batch(trainer.sample(), 0.5)
    images = batch.views.images
    maps = [x.detach().requires_grad_() for x in trainer.network(images)]
    upstream = [torch.randn_like(x) for x in maps]

    def loss() -> None:
        parts = trainer.losses(tuple(maps), batch)
        torch.autograd.backward(torch.stack([part.loss for part in parts]).sum())

    steps: Steps = {
        "step": trainer.train_step,
        "network": lambda: torch.autograd.backward(trainer.network(images), upstream),
        "loss": loss,
        "batch": lambda: trainer._batch(trainer.sample(), 0.5),
        "optimiser": trainer.optimizer.step,
    }
    return Work(len(images), steps)


def finetuning(config: FinetuneConfig, device: torch.device) -> Work:
    """Return the step and its parts."""
    slices = random_slices(config.data.grid.size, 4).to(device)
    trainer = FinetuneTrainer(config, slices, device)
    trainer.train_step(slices.images, slices.masks)
    index = torch.arange(config.batch_size, device=device)
    images, masks = slices.images[index], slices.masks[index].long()

    def forward() -> Tensor:
        with autocast(device, config.precision):
            logits: Tensor = trainer.segmenter(images)
        return logits

    logits = forward().detach().requires_grad_()
    upstream = torch.randn_like(logits)
    steps: Steps = {
        "step": lambda: trainer.train_step(slices.images, slices.masks),
        "network": lambda: torch.autograd.backward(forward(), upstream),
        "loss": lambda: torch.autograd.backward(
            supervised_loss(logits.float(), masks, config.dice_weight)
        ),
        "batch": lambda: augment(images, masks, config.augment, trainer.generator),
        "optimiser": trainer.optimizer.step,
    }
    return Work(config.batch_size, steps)


def host_ms(step: Callable[[], object], device: Device) -> float:
    """Return the least CPU time until a step returns."""
    times = []
    for _ in range(3):
        device.synchronise()
        begin = time.process_time()
        step()
        times.append(1e3 * (time.process_time() - begin))
    return min(times)


def measure(stage: str, ways: Mapping[bool, Work], rounds: int, device: Device) -> list[Row]:
    """Return the rows of a stage, whose ways, compiled or not, are timed in turns."""
    every = {f"{key} {way}": one for way, work in ways.items() for key, one in work.steps.items()}
    times = {key: one["time_ms"] for key, one in time_steps(every, rounds, device).items()}
    rows: list[Row] = []
    for way, work in ways.items():
        step, network = times[f"step {way}"], times[f"network {way}"]
        row: Row = {"compiled": way, "stage": stage, "images": work.images, "step_ms": step}
        row |= {"images_per_s": round(1e3 * work.images / step, 1)}
        row |= {"ceiling_per_s": round(1e3 * work.images / network, 1)}
        row |= {f"{part}_share": round(times[f"{part} {way}"] / step, 4) for part in PARTS}
        rows.append(row | {"host_ms": round(host_ms(work.steps["step"], device), 2)})
    return rows


def line(row: dict[str, Any]) -> str:
    shares = ", ".join(f"{part} {row[f'{part}_share']:.1%}" for part in PARTS)
    compiled = " compiled" if row["compiled"] else ""
    return (
        f"{row['preset']} {row['stage']}{compiled}: {row['images']} images of {row['size']}, "
        f"{row['step_ms']:,.1f} ms, {row['images_per_s']:,.1f} images/s of "
        f"{row['ceiling_per_s']:,.1f}; {shares}; host {row['host_ms']:,.1f} ms"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_training", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    presets = ["acdc-cpu", "acdc-paper"]
    parser.add_argument("--preset", nargs="+", default=presets, metavar="X")
    stages = ["pretrain", "finetune"]
    parser.add_argument("--stage", nargs="+", choices=stages, default=stages)
    parser.add_argument("--scans", type=int, help="scans of a pre-training batch; default preset's")
    parser.add_argument("--size", type=int, help="side of the slices; default preset's")
    parser.add_argument("--compile", action="store_true", help="also measure it compiled, in turns")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--append", action="store_true", help="add to the result file")
    return parser.parse_args(arguments)


def rows_of(args: argparse.Namespace, device: Device) -> list[Row]:
    """Measure and print every preset, stage and way."""
    rows = []
    for preset in args.preset:
        for stage in args.stage:
            ways = (False, True) if args.compile else (False,)
            size, work = 0, {}
            for way in ways:
                size, work[way] = work_of(preset, stage, args, torch.device(device.where), way)
            for row in measure(stage, work, args.rounds, device):
                rows.append({"preset": preset, "size": size, **row})
                print(line(rows[-1]), flush=True)
    return rows


def work_of(
    preset: str, stage: str, args: argparse.Namespace, where: torch.device, compiled: bool
) -> tuple[int, Work]:
    """Return the side of the slices and the step of a preset's stage."""
    file = preset_path(preset)
    if stage == "finetune":
        second = stage_config(FinetuneConfig, stage, file)
        second = replace(second, data=resized(second.data, args.size), compile=compiled)
        return second.data.grid.size, finetuning(second, where)
    first = stage_config(PretrainConfig, stage, file)
    first = replace(first, data=resized(first.data, args.size), compile=compiled)
    first = replace(first, num_scans=args.scans or first.num_scans)
    return first.data.grid.size, pretraining(first, where)


def resized(data: Any, size: int | None) -> Any:
    return replace(data, grid=replace(data.grid, size=size)) if size else data


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit code."""
    args = parse(arguments)
    device: Device = OneThread() if args.device == "cpu" else DEVICES[args.device]()
    if lack := device.lacks():
        print(lack, file=sys.stderr)
        return 2
    threads = torch.get_num_threads()
    if device.name == "cpu":
        torch.set_num_threads(1)
    try:
        rows = rows_of(args, device)
    finally:
        torch.set_num_threads(threads)
    path = args.json
    if path is None and device.name != "cpu":
        path = REPOSITORY / "benchmarks" / "results" / device.slug() / "training.json"
    if path is not None:
        given = sys.argv[1:] if arguments is None else list(arguments)
        head = provenance("benchmarks.bench_training", given) | device.facts()
        write_result(path, {**head, "rows": rows}, append=args.append)
    return 0


if __name__ == "__main__":
    sys.exit(main())
