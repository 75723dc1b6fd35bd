"""The methods to compare: how each is pre-trained, and what it adds to the supervised loss.

The weights are from the authors' grids (arXiv:2107.13741 and its released code), the same for all
data sets. PAPER holds the paper's table: 3-D Dice in % by data set, method and labelled scans.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.pretrain.config import PretrainConfig


@dataclass(frozen=True)
class Recipe:
    """How the networks of one row of the table are trained.

    Attributes:
        name: As in the paper, if it is one of its methods.
        encoder: Key of ENCODERS or DECODERS; None trains from scratch.
        semi: Weights of terms of `SemiConfig`.
    """

    name: str
    encoder: str | None = None
    semi: dict[str, float] = field(default_factory=dict)


METHODS = {
    "scratch": Recipe("Labelled scans only"),
    "entropy": Recipe("Entropy minimisation", semi={"entropy": 0.01}),
    "mixup": Recipe("Mix-up", semi={"mixup": 0.1}),
    "adversarial": Recipe("Adversarial training", semi={"adversarial": 0.01}),
    "teacher": Recipe("Mean teacher", semi={"teacher": 10.0}),
    "mutual_information": Recipe("Discrete MI", semi={"mutual_information": 1.0}),
    "copy_paste": Recipe("Bidirectional copy-paste", semi={"copy_paste": 1.0}),
    "simclr": Recipe("SimCLR, fine-tuned", encoder="simclr"),
    "pcl": Recipe("PCL, fine-tuned", encoder="pcl"),
    "y_aware": Recipe("y-aware, fine-tuned", encoder="y_aware"),
    "position": Recipe("Position, fine-tuned", encoder="position"),
    "contrastive": Recipe("Contrastive, encoder and decoder", encoder="contrastive"),
    "self_paced": Recipe("Self-paced, fine-tuned", encoder="self_paced"),
    "ours": Recipe("Self-paced, semi-supervised", "self_paced", {"contrast": 0.1, "teacher": 10.0}),
}
PAPER_METHODS = (
    *("scratch", "entropy", "mixup", "adversarial", "teacher", "mutual_information"),
    *("contrastive", "position", "self_paced", "ours"),
)

# What each encoder changes in the loss of the preset, which is the paper's self-paced one.
ENCODERS: dict[str, dict[str, Any]] = {
    "self_paced": {},
    "position": {"labels": ("position",), "weights": (1.0,), "pace": "none"},
    "simclr": {"labels": ("self",), "weights": (1.0,), "pace": "none"},
    "pcl": {
        **{"labels": ("position",), "weights": (1.0,), "pace": "none"},
        **{"position_window": 0.35, "tau": 0.1},  # its authors' on ACDC
    },
    "y_aware": {
        **{"labels": ("position",), "weights": (1.0,), "pace": "none"},
        **{"position_kernel": 0.1, "tau": 0.1},
    },
}
DECODERS = {"contrastive": "position"}  # a decoder's stage, and the encoder below it

PaperTable = dict[str, dict[int, tuple[float, float]]]
PAPER: dict[str, PaperTable] = {
    "acdc": {
        "entropy": {1: (60.47, 1.03), 2: (69.81, 0.99), 4: (76.19, 1.21)},
        "mixup": {1: (60.87, 1.28), 2: (67.45, 1.04), 4: (76.18, 0.49)},
        "adversarial": {1: (63.05, 0.80), 2: (70.68, 0.27), 4: (75.89, 0.94)},
        "teacher": {1: (62.85, 0.67), 2: (72.84, 0.22), 4: (79.12, 0.08)},
        "mutual_information": {1: (69.27, 1.41), 2: (77.74, 0.42), 4: (80.06, 0.24)},
        "contrastive": {1: (70.05, 2.66), 2: (79.11, 2.02), 4: (81.25, 2.15)},
        "ours": {1: (79.80, 0.33), 2: (83.20, 0.25), 4: (84.84, 0.15)},
    },
    "promise12": {
        "entropy": {3: (53.47, 5.70), 5: (65.66, 0.42), 7: (73.52, 2.71)},
        "mixup": {3: (41.38, 2.80), 5: (64.55, 1.93), 7: (73.56, 0.61)},
        "adversarial": {3: (61.58, 2.10), 5: (71.00, 1.20), 7: (81.05, 1.34)},
        "teacher": {3: (52.96, 1.97), 5: (68.38, 2.04), 7: (77.37, 0.87)},
        "mutual_information": {3: (47.77, 3.58), 5: (68.29, 2.35), 7: (77.63, 1.13)},
        "contrastive": {3: (61.15, 2.95), 5: (74.62, 1.69), 7: (80.08, 1.39)},
        "ours": {3: (74.47, 0.36), 5: (83.78, 0.30), 7: (84.52, 0.17)},
    },
    "mmwhs": {
        "entropy": {1: (72.28, 0.58), 2: (78.39, 1.54)},
        "mixup": {1: (71.50, 0.54), 2: (80.12, 0.84)},
        "adversarial": {1: (73.47, 1.42), 2: (80.40, 0.93)},
        "teacher": {1: (72.36, 1.35), 2: (81.01, 0.57)},
        "mutual_information": {1: (72.38, 1.04), 2: (82.45, 1.36)},
        "contrastive": {1: (76.45, 0.62), 2: (82.93, 0.42)},
        "ours": {1: (78.97, 0.52), 2: (84.87, 0.11)},
    },
}


def encoder_config(preset: PretrainConfig, encoder: str, init: Path | None) -> PretrainConfig:
    """Return the pre-training of `encoder`; `init` is that of the encoder below a decoder."""
    if encoder in DECODERS:
        below = encoder_config(preset, DECODERS[encoder], None)
        return replace(below, encoder_weight=0.0, dense_weight=1.0, init=init)
    loss = preset.loss
    if changes := ENCODERS[encoder]:
        loss = replace(loss, start=loss.start[:1], end=loss.end[:1], **changes)
    return replace(preset, loss=loss)


def method_config(preset: FinetuneConfig, method: Recipe) -> FinetuneConfig:
    """Return the fine-tuning of `method`, without its `init`."""
    weights: dict[str, Any] = method.semi
    return replace(preset, semi=replace(preset.semi, **weights))
