"""The tables of segmentation results: one labelled scan, the paper's table, the noise audit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.cost_tables import read, source
from spcl_fast.segmentation.commands.method_table import markdown
from spcl_fast.segmentation.evaluate.paired import paired_from_json
from spcl_fast.segmentation.report.audit_record import PLAIN, Audit, AuditRow
from spcl_fast.segmentation.report.reproduction_record import Reproduction

ARM_NAMES = {
    "scratch": "from scratch",
    "simclr": "SimCLR",
    "position": "position",
    "self_paced_position": "self-paced position",
}


def one_scan() -> str:
    """Return the table of Dice from one labelled scan."""
    result = read("one_scan_acdc.json")
    lines = [
        "| labelled scan | " + " | ".join(ARM_NAMES.values()) + " |",
        "|---|" + "---:|" * len(ARM_NAMES),
    ]
    for pick in result["picks"]:
        texts = [f"{pick['dice'][arm]:.3f}" for arm in ARM_NAMES]
        lines.append(f"| {pick['labelled'][0]} | " + " | ".join(texts) + " |")
    means = [f"**{result['mean_dice'][arm]:.3f}**" for arm in ARM_NAMES]
    lines += ["| mean | " + " | ".join(means) + " |", ""]
    lines += ["| paired difference of Dice | mean | 95 % interval | scans with a gain |"]
    lines += ["|---|---:|---:|---:|"]
    for name, pair in paired_from_json(result["paired"]).items():
        first, second = (ARM_NAMES[arm] for arm in name.split(" - "))
        cells = [pair.mean_text, pair.interval_text, f"{pair.up} of {len(result['picks'])}"]
        lines.append(f"| {first} minus {second} | " + " | ".join(cells) + " |")
    origin = source("one_scan_acdc.json", result, "benchmarks/results/cpu")
    return "\n".join([*lines, "", origin])


def reproduction(name: str = "reproduction_acdc.json") -> str:
    """Return the paper's table beside ours."""
    result = read(name)
    return "\n".join([*markdown(Reproduction.from_json(result)), "", source(name, result)])


def efficiency() -> str:
    """Return Dice against the number of labelled scans, from one to all."""
    return reproduction("efficiency_acdc.json")


def audit(name: str = "audit_acdc.json") -> str:
    """Return the AUC of 1 - w and the gain in Dice, by pace and share of wrong labels."""
    content = read(name)
    result = Audit.from_json(content)
    noises = [noise for noise in result.noise if noise]
    names = [f"{100 * noise:g} %" for noise in noises]
    lines = [
        "AUC of 1 - w (without a pace: of the pair loss) for finding pairs with a wrong label:",
        "",
    ]
    lines += ["| pace | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for pace in result.paces:
        cells = [f"{_mean_auc(result.at(pace, noise)):.2f}" for noise in noises]
        lines.append(f"| {pace} | " + " | ".join(cells) + " |")
    lines += ["", "3-D Dice after fine-tuning; the paces as differences from plain SupCon:", ""]
    everywhere = ["0 %", *names] if 0.0 in result.noise else names
    lines += ["| pace | " + " | ".join(everywhere) + " |", "|---|" + "---:|" * len(everywhere)]
    for pace in result.paces:
        cells = [_dice_or_gain(result, pace, noise) for noise in result.noise]
        lines.append(f"| {pace} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", source(name, content)])


def _mean_auc(rows: Sequence[AuditRow]) -> float:
    """Return the mean over seeds; without a pace, the AUC of the pair loss."""
    return float(np.mean([row.auc_loss if row.auc is None else row.auc for row in rows]))


def _dice_or_gain(result: Audit, pace: str, noise: float) -> str:
    if pace == PLAIN:
        return f"{np.mean([row.dice for row in result.at(pace, noise)]):.3f}"
    gain = result.gain(pace, noise)
    return gain.text if gain else ""


def audit_long() -> str:
    """Return the same for three times the training at the largest share."""
    return audit("audit_long_acdc.json")
