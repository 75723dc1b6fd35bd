"""The noise audit: wrong meta-labels on purpose, and their effect under every pace.

    out/SEED-NOISE-PACE           pre-trainings with a share NOISE of the slices wrongly labelled
    out/SEED-NOISE-PACE-PICK      fine-tunings from them
    out/audit.json                AUC of 1 - w for the wrong pairs, ROC, Dice
    out/report.html               figures

An interrupted audit resumes where it stopped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.commands.grid_runs import (
    Task,
    check_jobs,
    command_line,
    portable,
    run_tasks,
    versions,
)
from spcl_fast.segmentation.evaluate.paired import PairedDifference, paired_evaluations
from spcl_fast.segmentation.evaluate.record import EVALUATION_FILE, Evaluation, read_evaluation
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.label_noise import roc
from spcl_fast.segmentation.report import write_report
from spcl_fast.segmentation.report.audit_record import ORACLE, PLAIN, Audit, AuditRow, noise_key
from spcl_fast.segmentation.report.summaries import AUDIT_FILE
from spcl_fast.segmentation.runs.config import plain, preset_path, stage_config
from spcl_fast.segmentation.runs.dataset import split_scans
from spcl_fast.segmentation.runs.device import Precision
from spcl_fast.segmentation.runs.ranks import Ranks
from spcl_fast.segmentation.runs.run import read_log

# What a pace changes in the loss of the preset. "linear" is the paper's schedule for positions on
# ACDC, "hard" its authors' early one. The other two, in units that do not depend on the batch size,
# decrease: all pairs take part at first, and the hardest are dropped once losses are informative.
PACES: dict[str, dict[str, Any]] = {
    PLAIN: {"pace": "none"},
    "hard": {"pace": "absolute", "mode": "hard", "start": (4.0,), "end": (14.0,)},
    "linear": {"pace": "absolute", "mode": "linear", "start": (5.0,), "end": (60.0,)},
    "relative": {"pace": "relative", "mode": "linear", "start": (3.0,), "end": (1.5,)},
    "quantile": {
        "pace": "quantile",
        "mode": "linear",
        "start": (1.0,),
        "end": (0.6,),
        "power": 1.0,
    },
    ORACLE: {"pace": "none"},
}


@dataclass(frozen=True)
class AuditConfig:
    """Corrupt some meta-labels; measure whether the pair weights find them, and the Dice.

    Attributes:
        root: Folder of the data set; None means the phantom.
        out: Folder of the runs, audit.json and report.html.
        preset: Preset of the pre-training and the fine-tuning.
        label: The meta-label to corrupt.
        noise: Shares of the slices that get a wrong label.
        paces: "none" (plain SupCon), "hard", "linear", "relative", "quantile", and "oracle", plain
            SupCon without the wrong labels, an upper bound for all of them.
        seeds: Number of pre-training seeds.
        picks: Fine-tunings per pre-training, each with a different labelled scan.
        epochs: Epochs of the pre-training; 0 means the preset's.
        steps: Steps of the fine-tuning; 0 means the preset's.
        jobs: Number of concurrent runs.
        threads: CPU threads per run.
        precision: Training precision of the networks; bfloat16 is faster on CPUs that support it.
    """

    root: Path | None = None
    out: Path = Path("runs/audit")
    preset: str = "acdc-cpu"
    label: str = "position"
    noise: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.4)
    paces: tuple[str, ...] = tuple(PACES)
    seeds: int = 1
    picks: int = 3
    epochs: int = 0
    steps: int = 0
    jobs: int = 1
    threads: int = 1
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        """Check the counts, shares and names."""
        for name in ("seeds", "jobs", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("picks", "epochs", "steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for share in self.noise:
            if not 0 <= share <= 1:
                raise ValueError(f"noise must be shares in [0, 1], got {share}")
        for pace in self.paces:
            if pace not in PACES:
                raise ValueError(f"paces must be among {', '.join(PACES)}, got {pace!r}")


def audit(config: AuditConfig) -> Path:
    """Run the missing parts of the audit; return the path of audit.json.

    A run that fails is reported and left out.

    Raises:
        DataError, ConfigError, ValueError: One sentence for the user.
    """
    check_jobs(config)
    ranks = Ranks.current()
    file = preset_path(config.preset)
    stage1 = stage_config(PretrainConfig, "pretrain", file)
    stage2 = stage_config(FinetuneConfig, "finetune", file)
    loss = replace(stage1.loss, labels=(config.label,), weights=(1.0,))
    loss = replace(loss, start=loss.start[:1], end=loss.end[:1])
    data = replace(stage1.data, root=config.root, cache=config.out / "cache")
    share: dict[str, Any] = {"threads": config.threads, "precision": config.precision}
    epochs, steps = config.epochs or stage1.epochs, config.steps or stage2.steps
    stage1 = replace(stage1, data=data, loss=loss, epochs=epochs, **share)
    stage2 = replace(stage2, data=data, steps=steps, predictions=False, **share)
    # what cannot be used ends the audit before its first run
    ranks.first_then_others(lambda: split_scans(data))
    config.out.mkdir(parents=True, exist_ok=True)
    cells = [
        (seed, noise, pace)
        for seed in range(config.seeds)
        for noise in config.noise
        for pace in config.paces
        if noise or pace != ORACLE  # without wrong labels it is plain SupCon
    ]
    try:
        run_tasks([_pretraining(stage1, cell, config.out) for cell in cells], config)
        run_tasks(
            [
                _finetuning(stage2, cell, pick, config.out)
                for pick in range(config.picks)
                for cell in cells
            ],
            config,
        )
    finally:
        if ranks.is_first:
            _write(config, stage1, stage2, cells)
    return config.out / AUDIT_FILE


Cell = tuple[int, float, str]  # seed, noise, pace


def _folder(out: Path, cell: Cell) -> Path:
    seed, noise, pace = cell
    return out / f"{seed}-{noise:g}-{pace}"


def _pretraining(preset: PretrainConfig, cell: Cell, out: Path) -> Task:
    seed, noise, pace = cell
    loss = replace(preset.loss, **PACES[pace])
    changed = replace(preset, loss=loss, seed=seed, out=_folder(out, cell))
    changed = replace(changed, label_noise=noise, noise_known=pace == ORACLE)
    return Task(changed, "encoder.safetensors")


def _finetuning(preset: FinetuneConfig, cell: Cell, pick: int, out: Path) -> Task:
    init = _folder(out, cell)
    folder = init.with_name(f"{init.name}-{pick}")
    changed = replace(preset, init=init, pick=pick, seed=cell[0], out=folder)
    return Task(changed, EVALUATION_FILE)


def _write(
    config: AuditConfig, stage1: PretrainConfig, stage2: FinetuneConfig, cells: list[Cell]
) -> None:
    rows = [_row(config, cell) for cell in cells if (_folder(config.out, cell)).is_dir()]
    result = Audit(
        paces=config.paces,
        pace_settings={name: plain(PACES[name]) for name in config.paces},
        noise=config.noise,
        rows=tuple(row for row in rows if row),
        paired={pace: _paired(config, pace) for pace in config.paces if pace != PLAIN},
    )
    content = {
        "command": command_line("audit", config),
        "versions": versions(),
        **result.to_json(),
        "config": {"pretrain": portable(stage1), "finetune": portable(stage2)},
    }
    with atomic_file(config.out / AUDIT_FILE) as path:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if rows:
        write_report(config.out, config.out / "report.html")


def _row(config: AuditConfig, cell: Cell) -> AuditRow | None:
    """Return the figures of a pre-training and its fine-tunings, None if it has not ended."""
    seed, noise, pace = cell
    folder = _folder(config.out, cell)
    if not (folder / "encoder.safetensors").exists():
        return None
    last = [row for row in read_log(folder / "metrics.jsonl") if row["kind"] == "epoch"][-1]
    row = AuditRow(
        pace,
        noise,
        seed,
        dice=tuple(e.dice_mean for e in _evaluations(config, cell).values()),
        mean_weight=last["mean_weight"],
        knn_position_accuracy=last["knn_position_accuracy"],
    )
    if not noise:
        return row
    row = replace(
        row,
        auc_loss=last["audit_auc_loss"],
        wrong_pairs=last["audit_wrong"],
        weight_wrong=last["audit_weight_wrong"],
        weight_right=last["audit_weight_right"],
    )
    if pace in (PLAIN, ORACLE):
        return row
    with np.load(folder / "audit.npz") as scores:
        rates = roc(1 - scores["weight"].astype(np.float64), scores["wrong"])
    return replace(row, auc=last["audit_auc"], roc=(rates["fpr"], rates["tpr"]))


def _evaluations(config: AuditConfig, cell: Cell) -> dict[int, Evaluation]:
    """Return the evaluations of the fine-tunings of a cell, by pick."""
    folder = _folder(config.out, cell)
    files = {
        pick: folder.with_name(f"{folder.name}-{pick}") / EVALUATION_FILE
        for pick in range(config.picks)
    }
    return {pick: read_evaluation(path) for pick, path in files.items() if path.exists()}


def _paired(config: AuditConfig, pace: str) -> dict[str, PairedDifference]:
    """Return the gain in Dice over plain SupCon by noise, over seeds, picks and patients.

    If the audit is incomplete: over the seeds with any pick, and the picks that all of these have.
    """
    gains: dict[str, PairedDifference] = {}
    for noise in config.noise:
        pairs = []
        for seed in range(config.seeds):
            ours, base = (_evaluations(config, (seed, noise, p)) for p in (pace, PLAIN))
            if both := {pick: (ours[pick], base[pick]) for pick in ours if pick in base}:
                pairs.append(both)
        picks = [pick for pick in range(config.picks) if pairs and all(pick in b for b in pairs)]
        if picks:
            arms = [[both[pick][k] for both in pairs for pick in picks] for k in (0, 1)]
            shape = (len(pairs), len(picks))
            gains[noise_key(noise)] = paired_evaluations(arms[0], arms[1], shape)
    return gains
