"""Wrong meta-labels on purpose, and whether the pair weights of a pre-training find them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.networks.encoders import last_map
from spcl_fast.segmentation.networks.evaluation_mode import evaluation_mode
from spcl_fast.segmentation.pretrain.moment import Moment
from spcl_fast.segmentation.runs.run import Run

Scores = NDArray[np.float64]
Marks = NDArray[np.bool_]


def flip_labels(columns: Mapping[str, Tensor], share: float, seed: int) -> dict[str, Tensor]:
    """Return the meta-labels with a share of them wrong.

    Args:
        columns: (n,) integer category of every slice, -1 where unknown.
        share: Share of the known labels that are replaced by another category, drawn uniformly.
        seed: Seed of the draws; slices that are wrong with a smaller share are so with a larger.

    Raises:
        ValueError: A label has a single category, so no other can be drawn.
    """
    flipped = {}
    for name, labels in columns.items():
        categories: Tensor = labels[labels >= 0].unique()  # type: ignore[no-untyped-call]
        if len(categories) < 2:
            raise ValueError(f"label_noise needs labels of two categories or more, {name} has one")
        generator = torch.Generator().manual_seed(seed)
        known = (labels >= 0).nonzero().flatten().cpu()
        order = known[torch.randperm(len(known), generator=generator)]
        shift = torch.randint(1, len(categories), (len(known),), generator=generator)
        wrong = order[: round(share * len(known))].to(labels.device)
        place = torch.searchsorted(categories, labels[wrong])
        place = (place + shift[: len(wrong)].to(labels.device)) % len(categories)
        flipped[name] = labels.clone()
        flipped[name][wrong] = categories[place]
    return flipped


def known_labels(clean: Mapping[str, Tensor], noisy: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the meta-labels for the oracle: a wrongly labelled slice has a category of its own.

    No pair weight can identify the wrong pairs better, so this is an upper bound for every pace.

    Args:
        clean: (n,) integer category of every slice, -1 where unknown.
        noisy: From `flip_labels`.
    """
    known = {}
    for name, labels in clean.items():
        alone = labels.max() + 1 + torch.arange(len(labels), device=labels.device)
        known[name] = torch.where(labels == noisy[name], labels, alone)
    return known


@torch.no_grad()
def wrong_pairs(
    run: Run,
    moment: Moment,
    encoder: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    clean: Tensor,
    noisy: Tensor,
) -> dict[str, float]:
    """Measure how well w_ij identifies wrong positive pairs, whose labels are equal by mistake.

    Only the first meta-label is audited. The two views of one slice are excluded: their labels are
    equal regardless of the noise. The scores are written to audit.npz.

    Args:
        run: Where to write.
        moment: The moment of the training.
        encoder: Evaluated in evaluation mode.
        batches: Slice index (N,) of each row, and views (N, 1, H, W).
        clean: (n,) the first meta-label of every slice.
        noisy: (n,) the one used in training.

    Returns:
        "audit_auc" of 1 - w, "audit_auc_loss" of the pair loss, "audit_wrong" the share of wrong
        pairs, "audit_weight_wrong" and "audit_weight_right" the mean weights.
    """
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    for index, views in batches:
        with evaluation_mode(encoder):
            pairs = moment.pairs(last_map(encoder(views)), noisy[index])
        audited = pairs.positive & (index[:, None] != index)
        wrong = clean[index][:, None] != clean[index]
        columns.append((pairs.weight[audited], pairs.loss[audited], wrong[audited]))
    w, l, marks = (torch.cat(x).cpu().double().numpy() for x in zip(*columns, strict=True))
    is_wrong = marks > 0
    with atomic_file(run.folder / "audit.npz") as partial, open(partial, "wb") as file:
        np.savez(file, weight=w.astype(np.float32), loss=l.astype(np.float32), wrong=is_wrong)
    return {
        "audit_auc": auc(1 - w, is_wrong),
        "audit_auc_loss": auc(l, is_wrong),
        "audit_wrong": float(is_wrong.mean()),
        "audit_weight_wrong": float(w[is_wrong].mean()),
        "audit_weight_right": float(w[~is_wrong].mean()),
    }


def auc(score: Scores, positive: Marks) -> float:
    """Return the probability that a positive has the larger score; a tie counts one half.

    NaN if there are no positives or no negatives.
    """
    from scipy.stats import rankdata

    num_positive, num_other = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_other:
        return float("nan")
    ranks = rankdata(score)[positive].sum() - num_positive * (num_positive + 1) / 2
    return float(ranks / (num_positive * num_other))


def roc(score: Scores, positive: Marks, points: int = 101) -> dict[str, list[float]]:
    """Return the false and true positive rates over all thresholds, at most `points` of each.

    Args:
        score: (n,).
        positive: (n,).
        points: Largest number of points; the corners of a curve of fewer are all kept.
    """
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.diff(score[order]) != 0, True]  # the end of every run of equal scores
    tpr = np.r_[0, np.cumsum(positive[order])[last]] / max(1, int(positive.sum()))
    fpr = np.r_[0, np.cumsum(~positive[order])[last]] / max(1, int((~positive).sum()))
    if len(tpr) > points:
        keep = np.unique(np.linspace(0, len(tpr) - 1, points).round().astype(int))
        tpr, fpr = tpr[keep], fpr[keep]
    return {"fpr": fpr.tolist(), "tpr": tpr.tolist()}
