"""Mix-up of labelled slices: a blend of two images has the blend of their masks as its target.

    x_i = lambda_i image_i + (1 - lambda_i) image_pi(i)        lambda_i ~ Beta(1, 1), uniform
    y_i = lambda_i mask_i  + (1 - lambda_i) mask_pi(i)         masks one-hot, pi a permutation
    L   = mean over pixels of  - sum_k y_k log p_k(x)

(arXiv:1710.09412). The authors of arXiv:2107.13741 use the Kullback-Leibler divergence instead,
which differs by a constant, the entropy of y.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from spcl_fast.devices import sent_to
from spcl_fast.precision import at_least_float32
from spcl_fast.segmentation.data.scan import IGNORED
from spcl_fast.segmentation.finetune.semi.term import Batch, Term


class MixUp(Term):
    """Cross-entropy of the student on blends of the labelled slices.

    They are a second pass through the student, so they enter its BatchNorm averages too.
    """

    def forward(self, batch: Batch) -> Tensor:
        """Return the cross-entropy in nats, () float32; draws lambda, then the permutation."""
        images, masks, generator = batch.images, batch.masks, batch.generator
        share = sent_to(images.device, torch.rand(len(images), generator=generator))  # lambda
        partner = sent_to(images.device, torch.randperm(len(images), generator=generator))
        share, images, other_images, masks, other_masks = (
            batch.labelled_rows.take(x)
            for x in (share, images, images[partner], masks, masks[partner])
        )
        blends = torch.lerp(other_images, images, share[:, None, None, None].to(images.dtype))
        with batch.autocast():
            logits = at_least_float32(batch.student(blends))
        # linear in y: no one-hot masks
        own, other = (
            cross_entropy(logits, y, ignore_index=IGNORED, reduction="none").mean((1, 2))
            for y in (masks, other_masks)
        )
        return batch.labelled_rows.mean(torch.lerp(other, own, share).mean())
