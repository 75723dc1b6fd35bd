"""Entropy minimisation: confident predictions on every pixel of the unlabelled slices.

    L = mean over pixels of  - sum_k p_k log p_k

in nats, 0 for one-hot predictions, log K for uniform ones (Grandvalet and Bengio, Semi-supervised
learning by entropy minimization, NeurIPS 2004).
"""

from __future__ import annotations

from torch import Tensor

from spcl_fast.segmentation.finetune.semi.term import Batch, Term


class EntropyMinimisation(Term):
    """Mean entropy of the student's softmax over the pixels of both views."""

    def forward(self, batch: Batch) -> Tensor:
        """Return the entropy in nats, () float32."""
        # p log p of the softmax has the gradient 0 x inf where p underflows; log_softmax is finite
        log_p = batch.logits.log_softmax(1)
        return batch.rows.mean(-(batch.probabilities * log_p).sum(1).mean())
