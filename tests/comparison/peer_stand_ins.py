"""What the compared packages compute, by the signatures that they have."""

import math

import torch
from torch.nn import functional


def cal_flash_loss(q, k, labels=None, scale=None, head_dim=256):
    """inf_cl 1.2.1."""
    if labels is None:
        labels = torch.arange(q.shape[0], device=q.device)
    q = ((1.0 if scale is None else scale) * q).view(q.shape[0], -1, head_dim).float().flatten(1)
    k = k.view(k.shape[0], -1, head_dim).float().flatten(1)
    return (q @ k.T).logsumexp(1) - (q * k[labels]).sum(1)


class Rescale(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.factor * grad, None


class Memeff(torch.nn.Module):
    """memeff 0.3.1: rows are normalised and gradients rescaled unless it is told not to."""

    def prepare(self, *sides):
        scale = math.sqrt(len(sides[0]) * self.temperature) if self.stable else 1.0
        for side in sides:
            unit = side if self.normalized_inputs else functional.normalize(side, dim=1)
            yield Rescale.apply(unit.float(), scale)


class MemoryEfficientCLIPLoss(Memeff):
    def __init__(
        self,
        temperature=0.07,
        normalized_inputs=False,
        stable=True,
        tau_plus=0.0,
        label_smoothing=0.0,
    ):
        super().__init__()
        assert tau_plus == label_smoothing == 0
        self.temperature, self.normalized_inputs = temperature, normalized_inputs
        self.stable = stable

    def forward(self, image_features, text_features, tau_plus=None):
        x, y = self.prepare(image_features, text_features)
        sim, own = x @ y.T / self.temperature, torch.arange(len(x))
        return (functional.cross_entropy(sim, own) + functional.cross_entropy(sim.T, own)) / 2


class MemoryEfficientQwen3Loss(Memeff):
    def __init__(
        self,
        temperature=0.07,
        margin=0.1,
        use_qq_negatives=False,
        use_dd_negatives=False,
        normalized_inputs=False,
        stable=True,
        tau_plus=0.0,
        label_smoothing=0.0,
    ):
        super().__init__()
        assert tau_plus == label_smoothing == 0
        assert not use_qq_negatives
        assert not use_dd_negatives
        self.temperature, self.margin, self.stable = temperature, margin, stable
        self.normalized_inputs = normalized_inputs

    def forward(self, query_features, doc_features, hard_negative_features=None, tau_plus=None):
        q, d = self.prepare(query_features, doc_features)
        cosine = q @ d.T
        dropped = cosine.detach() > cosine.detach().diagonal()[:, None] + self.margin
        sim = cosine.masked_fill(dropped, -math.inf) / self.temperature
        return functional.cross_entropy(sim, torch.arange(len(q)))


class LigerFusedLinearCrossEntropyLoss(torch.nn.Module):
    """liger-kernel 0.8.5: the weight comes first."""

    def forward(self, lin_weight, _input, target, bias=None):
        return functional.cross_entropy((_input @ lin_weight.t()).float(), target)


def linear_cross_entropy(
    e,
    c,
    targets,
    ignore_index=-100,
    softcap=None,
    reduction="mean",
    shift=False,
    filter_eps="high",
    impl="cce",
):
    """cut-cross-entropy 25.1.1: skips small gradients unless it is told not to."""
    assert reduction == "mean"
    sim = (e @ c.T).float()
    if filter_eps is not None:
        sim.register_hook(lambda grad: grad * (grad.abs() > 1e-3 / len(e)))
    return functional.cross_entropy(sim, targets)


def fused_siglip_loss(img_features, txt_features, log_temperature, bias):
    """siglip-kernel 0.1.2."""
    logits = (img_features @ txt_features.T).float() * log_temperature.exp() + bias
    signs = 2 * torch.eye(len(logits)) - 1
    return -functional.logsigmoid(signs * logits).sum() / len(logits)


STAND_INS = {
    "inf_cl": [cal_flash_loss],
    "memeff": [MemoryEfficientCLIPLoss, MemoryEfficientQwen3Loss],
    "liger_kernel.transformers": [LigerFusedLinearCrossEntropyLoss],
    "cut_cross_entropy": [linear_cross_entropy],
    "siglip_kernel": [fused_siglip_loss],
}
