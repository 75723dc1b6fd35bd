"""Pre-train an encoder without labels, as SimCLR does (arXiv:2002.05709).

python examples/simclr.py
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize
from toy import NUM_CLASSES, arguments, encoder, images, neighbour_accuracy, view

from spcl_fast import NTXentLoss

args = arguments(steps=300, batch=256)
x, _ = images(2000, seed=0)
model = encoder()
loss = NTXentLoss(tau=0.2)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
print(f"before: accuracy {neighbour_accuracy(model):.3f}, chance {1 / NUM_CLASSES:.3f}")

for step in range(args.steps):
    batch = x[torch.randint(len(x), (args.batch,))]
    views = (normalize(model(view(batch)), dim=1) for _ in range(2))
    out = loss(*views)
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    if step % 10 == 0 or step == args.steps - 1:
        print(f"step {step}: loss {out.loss.item():.4f}, collapse {out.collapse.item():.3f}")

print(f"after: accuracy {neighbour_accuracy(model):.3f}, chance {1 / NUM_CLASSES:.3f}")
