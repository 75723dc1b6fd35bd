"""Train an image tower and a text tower with open_clip's loss: only one import line changes.

A scene has six attributes with four values each. The image is the sum of a pattern per attribute;
the text is a token per attribute, in random order.

python examples/clip.py
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from toy import SIDE, arguments

from spcl_fast.compat.open_clip import ClipLoss  # was: from open_clip import ClipLoss

ATTRIBUTES, VALUES = 6, 4
args = arguments(steps=200, batch=256)
patterns = torch.randn(ATTRIBUTES, VALUES, SIDE * SIDE)


def pairs(count: int) -> tuple[Tensor, Tensor]:
    """Return images (count, 256) and texts (count, 6) of the same scenes."""
    values = torch.randint(VALUES, (count, ATTRIBUTES))
    image = patterns[torch.arange(ATTRIBUTES), values].sum(1)
    tokens = values + VALUES * torch.arange(ATTRIBUTES)
    order = torch.rand(count, ATTRIBUTES).argsort(1)
    return image + torch.randn_like(image), tokens.gather(1, order)


class TwoTowers(nn.Module):
    """An image tower, a text tower, and the logarithm of 1 / temperature."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(SIDE * SIDE, 128), nn.ReLU(), nn.Linear(128, dim))
        words = nn.EmbeddingBag(ATTRIBUTES * VALUES, 64)
        self.text = nn.Sequential(words, nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return unit rows of both towers, and the logit scale."""
        rows = normalize(self.image(image), dim=1), normalize(self.text(text), dim=1)
        return *rows, self.logit_scale.exp()


model = TwoTowers()
criterion = ClipLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

for step in range(args.steps):
    loss = criterion(*model(*pairs(args.batch)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0 or step == args.steps - 1:
        tau = 1 / model.logit_scale.exp().item()
        print(f"step {step}: loss {loss.item():.4f}, temperature {tau:.4f}")

with torch.no_grad():
    image, text, _ = model(*pairs(200))
found = (image @ text.T).argmax(1) == torch.arange(200)
print(f"after: accuracy {found.float().mean().item():.3f}, chance {1 / 200:.3f}")
