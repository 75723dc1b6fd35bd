"""The job's sampler, meta-labels and views in a loop of one's own, on any data set and encoder.

python examples/own_data.py
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from torch.utils.data import DataLoader, Dataset
from toy import NUM_CLASSES, arguments, encoder

from spcl_fast import SelfPacedContrastiveLoss
from spcl_fast.pacing import power_schedule, relative_gamma
from spcl_fast.segmentation import (
    AugmentConfig,
    GroupBatches,
    GroupSampler,
    independent_views,
    position_partition,
)


class Stacks(Dataset[tuple[Tensor, int]]):
    """Noisy stacks of slices: those at one place show one pattern."""

    def __init__(self, num_scans: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(0)
        pattern = interpolate(torch.rand(NUM_CLASSES, 1, 6, 6, generator=draw), 24)
        draw.manual_seed(1 + seed)
        self.scan = torch.arange(num_scans).repeat_interleave(NUM_CLASSES)
        self.place = torch.arange(NUM_CLASSES).repeat(num_scans)
        self.length = torch.full_like(self.place, NUM_CLASSES)
        noise = torch.randn(len(self.place), 1, 24, 24, generator=draw)
        self.slices = (pattern[self.place] + 0.4 * noise).clamp(0, 1)  # as the views need it

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return a slice and its number, by which its meta-labels are found."""
        return self.slices[index], index


@torch.no_grad()
def accuracy(network: torch.nn.Module) -> str:
    """Return the share of slices of new stacks whose nearest other slice is at their place."""
    new = Stacks(40, seed=1)
    z = normalize(network(new.slices), dim=1)
    nearest = (z @ z.T).fill_diagonal_(-2).argmax(1)
    share = (new.place[nearest] == new.place).float().mean()
    return f"accuracy {share:.3f}, chance {1 / NUM_CLASSES:.3f}"


args = arguments(steps=100, batch=12)  # scans in a batch
data = Stacks(100, seed=0)
draw = torch.Generator().manual_seed(args.seed)
columns = (data.scan, data.place, data.length)
groups = {"num_scans": args.batch, "num_partitions": NUM_CLASSES, "slices_per_partition": 1}
loader = DataLoader(
    data, batch_sampler=GroupBatches(GroupSampler(*columns, **groups, generator=draw), args.steps)
)
meta = {"position": position_partition(data.place, data.length, NUM_CLASSES), "scan": data.scan}
mild = (0.8, 1.25)
augment = AugmentConfig(10, flip=False, brightness=mild, contrast=mild, gamma=mild)
network = encoder()
loss = SelfPacedContrastiveLoss(tau=0.1)
optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
print(f"before: {accuracy(network)}")
for step, (slices, index) in enumerate(loader):
    z = normalize(network(independent_views(slices, augment, draw)), dim=1)
    gamma = relative_gamma(power_schedule(step / args.steps, 1.2, 15.0), len(z))
    labels = {name: column[index].repeat(2) for name, column in meta.items()}
    out = loss(z, labels, gamma=gamma, weight={"position": 1.0, "scan": 0.1})
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    if step % 10 == 0 or step == args.steps - 1:
        print(f"step {step}: loss {out.loss.item():.4f}")  # it rises while pairs are added
print(f"after: {accuracy(network)}")
