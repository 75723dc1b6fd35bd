"""What averaging over folds, mirrored images and the largest component do to a segmentation.

    python -m benchmarks.ensembling --root ACDC --out runs/ensembling \
        --json benchmarks/results/cpu/ensembling_acdc.json

Fine-tunes a segmenter for each of some folds from scratch, on all scans of the other folds, and
evaluates on the test patients, who are in no fold: every segmenter by itself, and the mean of their
probabilities; also with mirrored images and the largest component of every class. Scores of single
segmenters are means over the folds. Resumes an interrupted run.

The 95 % interval of a paired difference is a bootstrap over folds and test patients (both are
resampled).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._provenance import provenance, write_result
from spcl_fast.segmentation.commands.evaluate import EvaluateConfig, evaluate
from spcl_fast.segmentation.evaluate.paired import paired_difference, paired_evaluations
from spcl_fast.segmentation.evaluate.record import (
    EVALUATION_FILE,
    Evaluation,
    read_evaluation,
    write_evaluation,
)
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.finetune.loop import finetune
from spcl_fast.segmentation.runs.config import plain, preset_path, stage_config
from spcl_fast.segmentation.runs.dataset import split_scans

SINGLE, ENSEMBLE = "single", "ensemble"
ARMS: dict[str, dict[str, dict[str, bool]]] = {
    SINGLE: {"": {}, " + largest": {"largest_component": True}},
    ENSEMBLE: {
        "": {},
        " + flips": {"flips": True},
        " + flips + largest": {"flips": True, "largest_component": True},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/ensembling"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--preset", default="acdc-cpu")
    parser.add_argument("--folds", type=int, default=5, help="of the training patients")
    parser.add_argument("--members", type=int, default=5, help="folds that are trained")
    parser.add_argument("--test-patients", type=int, help="default: the preset's")
    parser.add_argument("--steps", type=int, help="of a fine-tuning; default: the preset's")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    config = configured(args)
    runs = [trained(config, fold, args.out / f"fold{fold}") for fold in range(args.members)]
    write(args, config, scores(runs, args.out))


def configured(args: argparse.Namespace) -> FinetuneConfig:
    """Return the fine-tuning of every fold, without its labelled scans."""
    config = stage_config(FinetuneConfig, "finetune", preset_path(args.preset))
    data = replace(config.data, root=args.root, cache=args.out / "cache", folds=args.folds)
    data = replace(data, num_test=args.test_patients or data.num_test)
    steps = args.steps or config.steps
    return replace(
        config, data=data, steps=steps, val_every=steps, threads=args.threads, predictions=False
    )


def trained(config: FinetuneConfig, fold: int, out: Path) -> Path:
    """Train the segmenter of a fold, unless it is there; return its folder."""
    data = replace(config.data, fold=fold)
    names = tuple(scan.name for scan in split_scans(data).train if scan.mask is not None)
    if not (out / EVALUATION_FILE).exists():
        one = replace(config, data=data, labelled=names, seed=fold, out=out)
        finetune(one, resume=out.exists())
    return out


def scores(runs: list[Path], out: Path) -> dict[str, list[Evaluation]]:
    """Return the evaluation of every arm: one per fold, the ensemble's repeated."""
    found = {}
    for way, options in ARMS[SINGLE].items():
        kept = [scored((run,), out / f"{run.name}{slug(way)}", options) for run in runs]
        found[f"{SINGLE}{way}"] = kept
    for way, options in ARMS[ENSEMBLE].items():
        together = scored(tuple(runs), out / f"{ENSEMBLE}{slug(way)}", options)
        found[f"{ENSEMBLE}{way}"] = [together] * len(runs)
    return found


def slug(way: str) -> str:
    return way.replace(" + ", "-")


def scored(runs: tuple[Path, ...], out: Path, options: dict[str, bool]) -> Evaluation:
    """Return the evaluation of a segmenter or an ensemble, kept in a folder."""
    file = out / EVALUATION_FILE
    if not file.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_evaluation(file, evaluate(EvaluateConfig(runs, device="cpu", **options)))
    return read_evaluation(file)


def write(
    args: argparse.Namespace, config: FinetuneConfig, arms: dict[str, list[Evaluation]]
) -> None:
    """Write the results, and print them."""
    command = [a for a in sys.argv[1:] if not a.startswith("/")]
    first = arms[SINGLE]
    pairs = [(arm, base) for base in (SINGLE, ENSEMBLE) for arm in arms]
    pairs = [
        (a, b) for a, b in pairs if a != b and (b.startswith(SINGLE) or a.startswith(ENSEMBLE))
    ]
    distances = {arm: np.array([hd95_by_patient(e) for e in arms[arm]]) for arm in arms}
    result = {
        **provenance("benchmarks.ensembling", command),
        "data": "ACDC, 8-bit, nominal spacing; 80 patients of the training set, split by patient",
        "folds": args.folds,
        "members": args.members,
        "labelled_scans": [
            len(read_evaluation(args.out / f"fold{fold}" / EVALUATION_FILE).labelled_scans)
            for fold in range(args.members)
        ],
        "test_patients": len(first[0].dice_by_patient()),
        "test_scans": len(first[0].scans),
        "arms": {arm: summary(evaluations) for arm, evaluations in arms.items()},
        "paired_dice": {
            f"{a} - {b}": paired_evaluations(arms[a], arms[b]).to_json() for a, b in pairs
        },
        "paired_hd95_mm_nominal": {
            f"{a} - {b}": paired_difference(distances[a] - distances[b]).to_json() for a, b in pairs
        },
        "config": plain(config),
    }
    for key in ("root", "cache"):
        result["config"]["data"].pop(key)
    write_result(args.json, result, append=False)
    print(json.dumps({k: result[k] for k in ("arms", "paired_dice")}, indent=1), flush=True)


def hd95_by_patient(evaluation: Evaluation) -> list[float]:
    """Return the mean HD95 over scans and classes of each test patient, sorted by name."""
    rows: dict[str, list[float]] = {}
    for scan in evaluation.scans.values():
        known = [value for value in scan.hd95_mm.values() if not math.isnan(value)]
        rows.setdefault(scan.patient, []).append(statistics.fmean(known))
    return [statistics.fmean(rows[patient]) for patient in sorted(rows)]


def summary(evaluations: list[Evaluation]) -> dict[str, Any]:
    """Return the means of an arm over its evaluations."""
    dice = [e.dice for e in evaluations]
    hd95 = [e.hd95_mm for e in evaluations]
    return {
        "dice": {name: mean(row[name] for row in dice) for name in dice[0]},
        "hd95_mm_nominal": {name: mean(row[name] for row in hd95) for name in hd95[0]},
        "dice_mean": mean(e.dice_mean for e in evaluations),
        "hd95_mm_nominal_mean": mean(e.hd95_mm_mean for e in evaluations),
        "dice_mean_by_fold": [round(e.dice_mean, 5) for e in evaluations],
    }


def mean(values: Iterable[float]) -> float:
    return round(statistics.fmean(values), 5)


if __name__ == "__main__":
    main()
