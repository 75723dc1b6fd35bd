"""The contrastive term of a training step: heads, pace and loss of every meta-label."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spcl_fast.losses import SelfPacedContrastiveLoss, YAwareLoss
from spcl_fast.ops import pair_lse
from spcl_fast.pacing import power_schedule, quantile_gamma, relative_gamma
from spcl_fast.precision import at_least_float32
from spcl_fast.segmentation.data.meta_labels import binned, meta_label, numbers_of
from spcl_fast.segmentation.data.slices import Slices
from spcl_fast.segmentation.networks import ProjectionHead
from spcl_fast.segmentation.pretrain.loss_config import LossConfig
from spcl_fast.segmentation.runs.ranks import ALONE, Ranks, Rows


class ContrastStep(NamedTuple):
    """The contrastive term of one step."""

    loss: Tensor  # () sum of lambda_k L_k, differentiable
    stats: dict[str, Tensor]  # () each, detached: objective, mean_weight, num_anchors, collapse
    gamma: dict[str, float | Tensor]  # the pace of each label


def label_columns(slices: Slices, config: LossConfig) -> dict[str, Tensor]:
    """Return the meta-labels of every slice, (n,) each.

    Raises:
        ValueError: A label is not among those of the slices, or its values do not fit.
    """
    columns = {n: _column(slices, n, config) for n in config.labels}
    if (config.position_window or config.position_kernel) and "position" in columns:
        columns["position"] = slices.position
    return columns


def _column(slices: Slices, name: str, config: LossConfig) -> Tensor:
    if name in config.windows_of_columns:
        return numbers_of(slices, name)
    if name in (bins := config.bins_of_columns):
        return binned(slices, name, bins[name])
    return meta_label(slices, name, config.num_partitions)


def make_heads(in_features: int, config: LossConfig) -> nn.ModuleDict:
    """Return the projection heads, one per label or a single one named "shared"."""
    names = dict.fromkeys(map(config.head_of, config.labels))
    has_norm = config.projector_batch_norm
    return nn.ModuleDict({n: ProjectionHead(in_features, batch_norm=has_norm) for n in names})


def contrastive_step(
    features: Tensor,
    labels: Mapping[str, Tensor],
    heads: nn.ModuleDict,
    progress: float,
    config: LossConfig,
    rows: Rows | None = None,
    *,
    compiled: bool = False,
) -> ContrastStep:
    """Return the weighted sum of the losses of every meta-label.

    Args:
        features: (N, C, H, W) the encoder's last feature map, of both views.
        labels: (N,) of each meta-label, from `label_columns`.
        heads: From `make_heads`.
        progress: Share of the training that is done, 0 to 1; sets the pace.
        config: The loss.
        rows: This rank's part of the batch; the loss is that of the rows of all ranks.
        compiled: Compile the loss.
    """
    groups = [(n,) for n in config.labels] if config.own_projector else [config.labels]
    steps = []
    for names in groups:
        with torch.autocast(features.device.type, enabled=False):
            head = heads[config.head_of(names[0])]
            z = head(at_least_float32(features))
        own = {n: labels[n] for n in names}
        steps.append(paced_step(z, own, progress, config, rows, compiled=compiled))
    stats = {k: torch.stack([s.stats[k] for s in steps]).mean() for k in steps[0].stats}
    stats["objective"] = torch.stack([s.stats["objective"] for s in steps]).sum()
    loss = torch.stack([s.loss for s in steps]).sum()
    return ContrastStep(loss, stats, {n: g for s in steps for n, g in s.gamma.items()})


def paced_step(
    z: Tensor,
    labels: Mapping[str, Tensor],
    progress: float,
    config: LossConfig,
    rows: Rows | None = None,
    *,
    compiled: bool = False,
) -> ContrastStep:
    """Return the weighted sum of the losses of some meta-labels on the same rows.

    Args:
        z: (N, D) float32, unit rows.
        labels: (N,) of each meta-label.
        progress: Share of the training that is done, 0 to 1; sets the pace.
        config: The loss.
        rows: This rank's part of the batch; the loss is that of the rows of all ranks.
        compiled: Compile the loss.

    Raises:
        ValueError: The loss has no form for several ranks.
    """
    rows = rows or ALONE.rows(len(z))
    weight = {n: config.of_label(n, config.weights) for n in labels}
    if config.position_kernel and "position" in labels:
        gamma: dict[str, float | Tensor] = {"position": math.inf}
        if rows.ranks.world > 1:
            raise ValueError(
                "loss.position_kernel must be 0 in more than one process, got "
                f"{config.position_kernel}: train in one, or use position_window"
            )
        y_aware = YAwareLoss(config.tau, config.position_kernel, impl=config.impl)
        out = y_aware(z, labels["position"])
        loss, objective = (weight["position"] * x for x in (out.loss, out.objective))
    else:
        gamma = {n: gamma_of(n, z, labels[n], progress, config, rows) for n in labels}
        loss_fn = _loss_of(config, tuple(labels), rows.ranks, compiled=compiled)
        if compiled:  # a number that changes would be compiled again
            gamma = {n: torch.full((), float(g), device=z.device) for n, g in gamma.items()}
        out = loss_fn(z, labels, gamma=gamma, weight=weight)
        loss, objective = out.loss, out.objective
    stats = {k: getattr(out, k).float() for k in ("mean_weight", "num_anchors", "collapse")}
    return ContrastStep(loss, {"objective": objective.float(), **stats}, gamma)


@functools.lru_cache(maxsize=8)
def _loss_of(
    config: LossConfig, names: tuple[str, ...], ranks: Ranks, *, compiled: bool
) -> SelfPacedContrastiveLoss:
    loss = SelfPacedContrastiveLoss(
        config.tau,
        config.mode,
        correct_grad=config.correct_grad,
        window={name: config.window_of(name) for name in names},
        impl=config.impl,
        group=ranks.group,
    )
    if compiled:
        ranks.compile(loss)
    return loss


def gamma_of(
    name: str,
    z: Tensor,
    labels: Tensor,
    progress: float,
    config: LossConfig,
    rows: Rows | None = None,
) -> float | Tensor:
    """Return gamma of the label `name` at `progress`: a float, or () on the device of z."""
    if config.pace == "none":
        return math.inf
    start, end = config.of_label(name, config.start), config.of_label(name, config.end)
    pace = power_schedule(progress, start, end, p=config.power)
    if config.pace == "absolute":
        return pace
    rows = rows or ALONE.rows(len(z))
    if config.pace == "relative":
        return relative_gamma(pace, rows.of * (len(z) // len(rows)))
    with torch.no_grad():
        z, labels = rows.gather(z), rows.gather(labels)
        lse = pair_lse(z, config.tau, impl=config.impl)
        window, impl = config.window_of(name), config.impl
        return quantile_gamma(z, lse, labels, tau=config.tau, share=pace, window=window, impl=impl)


def plain_gamma(gamma: Mapping[str, float | Tensor]) -> Any:
    """Return gamma for the log: a number or None for infinity, or a dict of them by label."""
    values = {name: float(value) for name, value in gamma.items()}
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return next(iter(finite.values())) if len(finite) == 1 else finite
