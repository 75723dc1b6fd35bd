"""One batch over several processes, with the activations of one chunk at a time.

torchrun --nproc-per-node 2 examples/ddp.py
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel
from toy import NUM_CLASSES, arguments, encoder, images, neighbour_accuracy, view

from spcl_fast import ContrastiveLossOutput, SupConLoss, cached_step

args = arguments(steps=60, batch=128, chunk=64)  # per process; the same seed in all
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(args.seed + 1 + rank)  # every process draws different rows
x, y = images(1000, seed=0)
model = DistributedDataParallel(encoder())
supcon = SupConLoss(tau=0.1, group=dist.group.WORLD)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)


def say(text: str) -> None:
    """Print on rank 0 only."""
    if rank == 0:
        print(text, flush=True)


say(f"before: accuracy {neighbour_accuracy(model.module):.3f}, chance {1 / NUM_CLASSES:.3f}")
for step in range(args.steps):
    index = torch.randint(len(x), (args.batch,))
    labels = y[index].repeat(2)

    def loss_of(rows: Tensor, labels: Tensor = labels) -> ContrastiveLossOutput:
        """Compare the rows of this process with those of all processes."""
        return supcon(normalize(rows, dim=1), labels)

    batch = torch.cat([view(x[index]), view(x[index])])
    optimizer.zero_grad()
    out = cached_step(model, batch, loss_of, chunk=args.chunk)  # backward included
    optimizer.step()
    if step % 10 == 0 or step == args.steps - 1:
        say(f"step {step}: loss {out.loss.item():.4f}, anchors {out.num_anchors.item()}")

say(f"after: accuracy {neighbour_accuracy(model.module):.3f}, chance {1 / NUM_CLASSES:.3f}")
dist.destroy_process_group()
