"""The segmentation job: pre-train on meta-labels, fine-tune on a few labelled scans, evaluate.

    from spcl_fast.segmentation import DataConfig, PretrainConfig, pretrain

    data = DataConfig(root=Path("ACDC"))
    encoder = pretrain(PretrainConfig(out=Path("runs/pretrain"), data=data))

`pretrain`, `finetune` and `predict` do what the commands of these names do; `preset` returns the
configuration of a stage by the name of a preset, and `dataclasses.replace` changes it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Imported when they are used: the command line must say what is missing.
_WHERE = {
    "predict": "commands.predict",
    "PredictConfig": "commands.predict",
    "PretrainConfig": "pretrain.config",
    "LossConfig": "pretrain.loss_config",
    "DenseConfig": "pretrain.loss_config",
    "FinetuneConfig": "finetune.config",
    "SemiConfig": "finetune.semi.config",
    "DataConfig": "runs.dataset",
    "ModelConfig": "runs.network",
    "OptimConfig": "runs.optim",
    "AugmentConfig": "data.augment",
    "Grid": "data.grid",
    "GroupSampler": "data.sampler",
    "GroupBatches": "data.sampler",
    "independent_views": "pretrain.views",
    "position_partition": "data.meta_labels",
    "preset": "runs.config",
}
__all__ = ["finetune", "pretrain", *_WHERE]


def __getattr__(name: str) -> Any:
    if name in ("pretrain", "finetune"):  # packages, and functions
        return import_module(f"{__name__}.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
