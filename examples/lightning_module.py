"""A LightningModule whose loss compares the rows of all the trainer's devices; needs lightning.

python examples/lightning_module.py
"""

from __future__ import annotations

import lightning
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, TensorDataset
from toy import NUM_CLASSES, arguments, encoder, images, neighbour_accuracy, view

from spcl_fast import SupConLoss


class Contrastive(lightning.LightningModule):
    """An encoder trained by SupConLoss."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()

    def setup(self, stage: str) -> None:
        """Create the loss here, where the process group exists."""
        group = torch.distributed.group.WORLD if self.trainer.world_size > 1 else None
        self.loss = SupConLoss(tau=0.1, group=group)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of two views of the batch."""
        x, labels = batch
        z = normalize(self.encoder(torch.cat([view(x), view(x)])), dim=1)
        out = self.loss(z, labels.repeat(2))
        self.log("collapse", out.collapse)  # of the whole batch, on every rank
        if self.global_step % 10 == 0 or self.global_step == self.trainer.max_steps - 1:
            self.print(f"step {self.global_step}: loss {out.loss.item():.4f}")
        return out.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


args = arguments(steps=100, batch=128, devices=1)
model = Contrastive()
before = neighbour_accuracy(model.encoder)
trainer = lightning.Trainer(
    accelerator="cpu",
    devices=args.devices,
    max_steps=args.steps,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, DataLoader(TensorDataset(*images(1280, seed=0)), args.batch, shuffle=True))
trainer.print(f"before: accuracy {before:.3f}, chance {1 / NUM_CLASSES:.3f}")
trainer.print(
    f"after: accuracy {neighbour_accuracy(model.encoder):.3f}, chance {1 / NUM_CLASSES:.3f}"
)
