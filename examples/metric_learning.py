"""The training loop of pytorch-metric-learning: only one import line changes.

If the package is installed, its CrossBatchMemory wraps our loss unchanged. The loss rises while the
memory fills, since every anchor is compared with more rows, and falls afterwards.

python examples/metric_learning.py
"""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, TensorDataset
from toy import NUM_CLASSES, arguments, encoder, images, neighbour_accuracy

from spcl_fast.compat.pytorch_metric_learning import SupConLoss  # was: from ...losses import

try:
    from pytorch_metric_learning.losses import CrossBatchMemory
except ImportError:
    CrossBatchMemory = None

args = arguments(steps=120, batch=64, memory=256)
data = TensorDataset(*images(1280, seed=0))
model = encoder()
loss_func = SupConLoss(temperature=0.1)
if CrossBatchMemory is None:
    print("pytorch-metric-learning is not installed: training without its memory")
else:
    loss_func = CrossBatchMemory(loss_func, embedding_size=32, memory_size=args.memory)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
print(f"before: accuracy {neighbour_accuracy(model):.3f}, chance {1 / NUM_CLASSES:.3f}")

step = 0
while step < args.steps:
    for x, labels in DataLoader(data, args.batch, shuffle=True):
        optimizer.zero_grad()
        embeddings = model(x)
        loss = loss_func(embeddings, labels)
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == args.steps - 1:
            print(f"step {step}: loss {loss.item():.4f}")
        step += 1
        if step == args.steps:
            break

print(f"after: accuracy {neighbour_accuracy(model):.3f}, chance {1 / NUM_CLASSES:.3f}")
