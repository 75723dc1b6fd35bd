"""Classify images with an encoder trained by SupContrast's loss: only one import line changes.

python examples/supcontrast_classifier.py
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from toy import NUM_CLASSES, arguments, encoder, images, view

from spcl_fast.compat.supcontrast import SupConLoss  # was: from losses import SupConLoss

args = arguments(steps=100, batch=128)
x, y = images(1000, seed=0)
model = encoder()
criterion = SupConLoss(temperature=0.1)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

for step in range(args.steps):
    index = torch.randint(len(x), (args.batch,))
    views = [normalize(model(view(x[index])), dim=1) for _ in range(2)]
    loss = criterion(torch.stack(views, dim=1), y[index])  # (batch, views, features)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0 or step == args.steps - 1:
        print(f"step {step}: loss {loss.item():.4f}")

# second stage: a linear classifier on the frozen encoder
test_x, test_y = images(500, seed=1)
with torch.no_grad():
    features, test_features = model(x), model(test_x)
head = nn.Linear(features.shape[1], NUM_CLASSES)
head_optimizer = torch.optim.AdamW(head.parameters(), lr=0.05)
for _ in range(100):
    head_optimizer.zero_grad()
    cross_entropy(head(features), y).backward()
    head_optimizer.step()

accuracy = (head(test_features).argmax(1) == test_y).float().mean().item()
print(f"after: accuracy {accuracy:.3f}, chance {1 / NUM_CLASSES:.3f}")
