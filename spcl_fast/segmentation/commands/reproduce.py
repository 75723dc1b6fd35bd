"""The paper's table: every method, number of labelled scans and seed, side by side.

    out/SEED-encoder-KEY          pre-trainings, one per encoder and seed
    out/SEED-COUNT-METHOD         fine-tunings
    out/reproduction.json, .md    the table: the paper's, ours, and paired differences
    out/report.html               figures

An interrupted grid resumes where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spcl_fast.segmentation.commands.comparison import (
    ALL,
    SEEDS,
    ReproduceConfig,
    encoder_folder,
    method_folder,
)
from spcl_fast.segmentation.commands.grid_runs import Task, check_jobs, run_tasks
from spcl_fast.segmentation.commands.method_table import TABLE_FILE, write_reproduction
from spcl_fast.segmentation.commands.methods import (
    DECODERS,
    METHODS,
    PAPER,
    encoder_config,
    method_config,
)
from spcl_fast.segmentation.data.protocol import ProtocolSplit
from spcl_fast.segmentation.evaluate.record import EVALUATION_FILE
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.runs.config import ConfigError, preset_path, stage_config
from spcl_fast.segmentation.runs.dataset import protocol_split
from spcl_fast.segmentation.runs.ranks import Ranks


def reproduce(config: ReproduceConfig) -> Path:
    """Run the missing parts of the grid; return the path of the table, reproduction.md.

    A run that fails is reported and leaves a gap in the table.

    Raises:
        DataError, ConfigError, ValueError: One sentence for the user.
    """
    check_jobs(config)
    ranks = Ranks.current()
    file = preset_path(f"{config.dataset}-{config.scale}")
    stage1 = stage_config(PretrainConfig, "pretrain", file)
    stage2 = stage_config(FinetuneConfig, "finetune", file)
    data = replace(
        stage1.data, root=config.root, cache=config.out / "cache", protocol=config.protocol
    )
    share: dict[str, Any] = {"threads": config.threads, "precision": config.precision}
    stage1 = replace(stage1, data=data, **share)
    stage2 = replace(stage2, data=data, **share)
    counts = ranks.first_then_others(lambda: _labelled(config, protocol_split(data)))
    config.out.mkdir(parents=True, exist_ok=True)
    encoders = dict.fromkeys(e for m in config.methods if (e := METHODS[m].encoder))
    below = dict.fromkeys(DECODERS[e] for e in encoders if e in DECODERS)
    seeds = SEEDS[: config.seeds]
    first = [e for e in {**below, **encoders} if e not in DECODERS]
    try:
        for keys in (first, [e for e in encoders if e in DECODERS]):
            run_tasks(_encoder_tasks(stage1, keys, seeds, config.out), config)
        run_tasks(_method_tasks(stage2, counts, seeds, config), config)
    finally:
        if ranks.is_first:
            write_reproduction(config, stage1, stage2, list(counts), seeds)
    return config.out / TABLE_FILE


def _labelled(config: ReproduceConfig, split: ProtocolSplit) -> dict[str, tuple[str, ...]]:
    """Return the names of the labelled scans by count."""
    known = split.labelled
    reasons = [f"{count} {reason}" for count, reason in split.incomplete.items()]
    wanted = config.labelled or tuple(str(c) for c in _paper_counts(config.dataset) if c in known)
    found: dict[str, tuple[str, ...]] = {}
    for count in wanted:
        if count == ALL:
            found[count] = tuple(scan.name for scan in split.train)
        elif count.isdecimal() and int(count) in known:
            found[count] = tuple(scan.name for scan in known[int(count)])
        else:
            listed = ", ".join([*map(str, known), ALL])
            more = f" ({'; '.join(reasons)})" if reasons else ""
            raise ConfigError(f"labelled must be among {listed}{more}, got {count!r}")
    if not found:
        raise ConfigError(f"no labelled scan of the protocol is there: {'; '.join(reasons)}")
    return found


def _paper_counts(dataset: str) -> Sequence[int]:
    return sorted({count for row in PAPER[dataset].values() for count in row})


def _encoder_tasks(
    preset: PretrainConfig, encoders: Iterable[str], seeds: Sequence[int], out: Path
) -> list[Task]:
    tasks = []
    for seed in seeds:
        for encoder in encoders:
            init = encoder_folder(out, DECODERS[encoder], seed) if encoder in DECODERS else None
            changed = encoder_config(preset, encoder, init)
            folder = encoder_folder(out, encoder, seed)
            task = replace(changed, seed=seed, out=folder)
            tasks.append(Task(task, "encoder.safetensors"))
    return tasks


def _method_tasks(
    preset: FinetuneConfig,
    counts: dict[str, tuple[str, ...]],
    seeds: Sequence[int],
    config: ReproduceConfig,
) -> list[Task]:
    tasks = []
    for seed in seeds:
        for count, names in counts.items():
            for key in config.methods:
                method = METHODS[key]
                if count == ALL and method.semi:
                    continue  # nothing is unlabelled
                encoder = method.encoder
                task = replace(
                    method_config(preset, method),
                    init=encoder_folder(config.out, encoder, seed) if encoder else None,
                    labelled=names,
                    seed=seed,
                    predictions=seed == seeds[0],  # enough for the pictures
                    out=method_folder(config.out, key, count, seed),
                )
                tasks.append(Task(task, EVALUATION_FILE))
    return tasks
