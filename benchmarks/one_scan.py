"""Does pre-training help a segmenter with one labelled scan, and does self-pacing add to it?

    python -m benchmarks.one_scan --root ACDC --out runs/one_scan \
        --json benchmarks/results/cpu/one_scan_acdc.json

Pre-trains three encoders (SimCLR, position SupCon, self-paced position). Fine-tunes from scratch
and from each encoder on one labelled end-diastolic scan, for several choices of it; all arms of a
choice share scan, batches, augmentation and decoder initialisation. Resumes an interrupted run.

The 95 % interval of a paired difference is a bootstrap over labelled scans and test patients (both
are resampled).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._provenance import provenance
from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.evaluate.paired import paired_evaluations
from spcl_fast.segmentation.evaluate.record import EVALUATION_FILE, Evaluation, read_evaluation
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.finetune.loop import finetune
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.loop import pretrain
from spcl_fast.segmentation.runs.config import plain, preset_path, stage_config
from spcl_fast.segmentation.runs.run import read_log

ARMS = {
    "scratch": None,
    "simclr": {"labels": ("self",), "weights": (1.0,), "pace": "none"},
    "position": {"labels": ("position",), "weights": (1.0,), "pace": "none"},
    "self_paced_position": {"labels": ("position",), "weights": (1.0,)},  # the pace of the preset
}
PAIRS = [
    ("simclr", "scratch"),
    ("position", "scratch"),
    ("self_paced_position", "scratch"),
    ("position", "simclr"),
    ("self_paced_position", "position"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/one_scan"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--preset", default="acdc-cpu")
    parser.add_argument("--picks", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    file = preset_path(args.preset)
    stage1 = stage_config(PretrainConfig, "pretrain", file)
    stage2 = stage_config(FinetuneConfig, "finetune", file)
    data = replace(stage1.data, root=args.root, cache=args.out / "cache")
    stage1 = replace(stage1, data=data, threads=args.threads)
    stage2 = replace(stage2, data=data, threads=args.threads, predictions=False)
    encoders = {}
    for arm, changes in ARMS.items():
        if changes is not None:
            loss = replace(stage1.loss, **changes)
            encoders[arm] = args.out / arm
            pretrain(replace(stage1, loss=loss, out=encoders[arm]), resume=True)
    picks = []
    for pick in range(args.picks):
        row = {}
        for arm in ARMS:
            out = args.out / f"pick{pick}-{arm}"
            if not (out / EVALUATION_FILE).exists():
                finetune(replace(stage2, pick=pick, init=encoders.get(arm), out=out), resume=True)
            row[arm] = read_evaluation(out / EVALUATION_FILE)
        picks.append(row)
        write(args, stage1, stage2, encoders, picks)


def write(
    args: argparse.Namespace,
    stage1: PretrainConfig,
    stage2: FinetuneConfig,
    encoders: dict[str, Path],
    picks: list[dict[str, Evaluation]],
) -> None:
    """Write the results so far, and print them."""
    command = [a for a in sys.argv[1:] if not a.startswith("/")]
    runs = {arm: [row[arm] for row in picks] for arm in ARMS}
    first = runs["scratch"][0]
    dice = {a: np.array([list(r.dice_by_patient().values()) for r in runs[a]]) for a in ARMS}
    result = {
        **provenance("benchmarks.one_scan", command),
        "data": "ACDC, 8-bit, nominal spacing; 80 patients of the training set, split by patient",
        "test_patients": len(first.dice_by_patient()),
        "test_scans": len(first.scans),
        "pretraining": {arm: pretraining(folder) for arm, folder in encoders.items()},
        "picks": [
            {
                "labelled": list(row["scratch"].labelled_scans),
                "dice": {arm: row[arm].dice_mean for arm in ARMS},
                "dice_by_class": {arm: row[arm].dice for arm in ARMS},
                "hd95_mm_nominal": {arm: row[arm].hd95_mm_mean for arm in ARMS},
            }
            for row in picks
        ],
        "mean_dice": {arm: float(dice[arm].mean()) for arm in ARMS},
        "std_over_picks": {
            arm: float(dice[arm].mean(1).std(ddof=1)) if len(picks) > 1 else None for arm in ARMS
        },
        "paired": {f"{a} - {b}": paired_evaluations(runs[a], runs[b]).to_json() for a, b in PAIRS},
        "config": {"pretrain": plain(stage1), "finetune": plain(stage2)},
    }
    for part in result["config"].values():
        part["data"].pop("root"), part["data"].pop("cache")
    with atomic_file(args.json) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    summary = {key: result[key] for key in ("mean_dice", "paired")}
    print(json.dumps(summary, indent=1), flush=True)


def pretraining(folder: Path) -> dict[str, Any]:
    """Return the course of a pre-training: loss and kNN accuracy of slice position by epoch."""
    epochs = [row for row in read_log(folder / "metrics.jsonl") if row["kind"] == "epoch"]
    columns = ("loss", "mean_weight", "collapse", "knn_position_accuracy")
    out: dict[str, Any] = {name: [round(row[name], 4) for row in epochs] for name in columns}
    left = [row["step"] for row in epochs if row["loss"] < 0.98 * row["collapse_loss"]]
    return out | {
        "steps": epochs[-1]["step"],
        "seconds": round(sum(row["seconds"] for row in epochs)),
        "log_num_rows_less_one": epochs[-1]["collapse_loss"],
        "first_step_2_percent_below_it": left[0] if left else None,
    }


if __name__ == "__main__":
    main()
