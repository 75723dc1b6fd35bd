"""The U-Net: parameter counts of the paper, shapes, gradients, a value worked by hand, messages."""

import pytest
import torch

from spcl_fast.segmentation.networks import UNet, UNetEncoder


def num_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_paper():
    net = UNet(in_channels=1, num_classes=4)
    assert num_parameters(net.encoder) == 1_179_472
    assert num_parameters(net.decoder) == 980_640
    assert num_parameters(net.out) == 68
    assert num_parameters(net) == 2_160_180
    assert num_parameters(UNet(max_channels=512)) == 8_633_444


# the smallest side there is, a rectangle, more channels than one
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 16, 16), (1, 48, 32), (3, 32, 16)])
def test_shapes(channels, height, width):
    net = UNet(in_channels=channels, num_classes=5, max_channels=32).eval()
    image = torch.randn(2, channels, height, width)
    features = net.encode(image)
    sizes = [(2, 2 << k, height >> k, width >> k) for k in range(5)]
    assert [tuple(f.shape) for f in features] == sizes
    assert torch.equal(net.encoder(image)[-1], features[-1])
    maps = net.decoder(features)
    assert [tuple(f.shape) for f in maps] == sizes[-2::-1]
    logits = net(image)
    assert logits.shape == (2, 5, height, width)
    assert logits.dtype == torch.float32
    assert torch.equal(net.decode(features), logits)


def test_conv5_of_the_paper():
    features = UNetEncoder().eval()(torch.zeros(1, 1, 32, 32))
    assert features[-1].shape == (1, 256, 2, 2)


def test_every_parameter_has_a_gradient():
    torch.manual_seed(0)
    net = UNet(max_channels=32)
    net(torch.randn(2, 1, 32, 32)).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_every_skip_reaches_the_output():
    torch.manual_seed(0)
    net = UNet(max_channels=16).eval()
    features = [f.detach().requires_grad_() for f in net.encode(torch.randn(1, 1, 32, 32))]
    logits = net.decode(features)
    for grad in torch.autograd.grad(logits.square().sum(), features):
        assert grad.abs().max() > 0


def test_value_of_a_constant_network():
    """All kernels average their input: a constant image stays so away from the zero border."""
    encoder = UNetEncoder(max_channels=16).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.constant_(module.weight, 1.0 / module.weight[0].numel())
    features = encoder(torch.full((1, 1, 32, 32), 3.0))
    # BatchNorm in eval mode divides by sqrt(1 + eps); eps = 1e-5, two a block
    for level in range(2):
        expected = 3.0 * (1 + 1e-5) ** -(level + 1)
        centre = features[level].shape[-1] // 2
        assert features[level][0, 0, centre, centre].item() == pytest.approx(expected, rel=1e-6)
    # a corner sees 4 of 9 pixels, then (4 + 6 + 6 + 9) / 9 of its neighbours' ninths
    corner = 3.0 * (4 + 6 + 6 + 9) / 81 / (1 + 1e-5)
    assert features[0][0, 0, 0, 0].item() == pytest.approx(corner, rel=1e-6)


def test_messages():
    net = UNet(max_channels=16)
    with pytest.raises(ValueError, match="image must have sides that are multiples of 16"):
        net(torch.zeros(1, 1, 24, 32))
    with pytest.raises(ValueError, match=r"image must be \(B, 1, H, W\), got \(1, 2, 32, 32\)"):
        net(torch.zeros(1, 2, 32, 32))
    with pytest.raises(ValueError, match="image must be"):
        net(torch.zeros(1, 32, 32))
    with pytest.raises(ValueError, match="max_channels must be a positive multiple of 16, got 24"):
        UNet(max_channels=24)
    with pytest.raises(ValueError, match="num_classes must be positive, got 0"):
        UNet(num_classes=0)
    with pytest.raises(ValueError, match="in_channels must be positive, got 0"):
        UNet(in_channels=0)
