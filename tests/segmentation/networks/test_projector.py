"""Projection heads: parameter counts, unit rows, gradients, a value worked by hand, messages."""

import pytest
import torch
from torch import nn

from spcl_fast.segmentation.networks import DenseProjectionHead, ProjectionHead


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_paper():
    assert num_parameters(ProjectionHead()) == 131_584
    assert num_parameters(ProjectionHead(batch_norm=True)) == 131_584 + 2 * 256
    assert num_parameters(DenseProjectionHead(32)) == 74_240


def test_batch_norm_follows_the_first_linear():
    kinds = [type(layer) for layer in ProjectionHead(8, 8, 8, batch_norm=True).layers]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU, nn.Linear]


# one pixel, a rectangle; a batch of one works without BatchNorm
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (3, 8, 4, 5)])
def test_rows_have_length_one(shape):
    torch.manual_seed(0)
    z = ProjectionHead(8, 16, 4)(torch.randn(shape))
    assert z.shape == (shape[0], 4)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(shape[0]))


def test_dense_rows_have_length_one():
    torch.manual_seed(0)
    z = DenseProjectionHead(8, 16, 4, size=3)(torch.randn(2, 8, 12, 10))
    assert z.shape == (2, 4, 3, 3)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(2, 3, 3))


def test_value_of_a_tiny_head():
    """Mean 2 and -1; hidden (2, -1) leaks to (2, -.01); output (2, -.02) over its length."""
    head = ProjectionHead(2, 2, 2)
    with torch.no_grad():
        head.layers[0].weight.copy_(torch.eye(2))
        head.layers[2].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        head.layers[0].bias.zero_()
        head.layers[2].bias.zero_()
    features = torch.tensor([[[[1.0, 3.0]], [[-4.0, 2.0]]]])  # (1, 2, 1, 2)
    length = (2.0**2 + 0.02**2) ** 0.5
    torch.testing.assert_close(head(features), torch.tensor([[2.0 / length, -0.02 / length]]))


def test_dense_equals_global_on_one_cell():
    """With one pixel a cell there is nothing to pool: both heads are the same map."""
    torch.manual_seed(0)
    dense, head = DenseProjectionHead(8, 16, 4, size=1), ProjectionHead(8, 16, 4)
    with torch.no_grad():
        for k in (0, 2):
            dense.layers[k].weight.copy_(head.layers[k].weight[:, :, None, None])
            dense.layers[k].bias.copy_(head.layers[k].bias)
    features = torch.randn(3, 8, 1, 1)
    torch.testing.assert_close(dense(features)[:, :, 0, 0], head(features))


@pytest.mark.parametrize("head", [ProjectionHead(8, 16, 4, True), DenseProjectionHead(8, 16, 4, 2)])
def test_gradients(head):
    torch.manual_seed(0)
    features = torch.randn(4, 8, 4, 4, requires_grad=True)
    head(features).pow(3).sum().backward()
    assert features.grad.abs().max() > 0
    # a bias before BatchNorm has no effect and so a gradient of zero
    dead = {"layers.0.bias"} if isinstance(head, ProjectionHead) else set()
    for name, parameter in head.named_parameters():
        assert name in dead or parameter.grad.abs().max() > 0, name


def test_messages():
    with pytest.raises(ValueError, match=r"features must be \(B, 8, H, W\), got \(2, 8\)"):
        ProjectionHead(8)(torch.zeros(2, 8))
    with pytest.raises(ValueError, match=r"features must be \(B, 8, H, W\), got \(2, 9, 4, 4\)"):
        DenseProjectionHead(8)(torch.zeros(2, 9, 4, 4))
    with pytest.raises(ValueError, match="hidden must be positive, got 0"):
        ProjectionHead(8, hidden=0)
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        DenseProjectionHead(8, size=0)
