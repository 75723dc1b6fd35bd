"""A segmenter around an encoder of one's own: shapes, training, the run folder, what is refused."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from spcl_fast.segmentation import PredictConfig, SemiConfig, finetune, predict, pretrain
from spcl_fast.segmentation.commands.evaluate import EvaluateConfig, evaluate
from spcl_fast.segmentation.commands.export import ExportConfig, export
from spcl_fast.segmentation.networks import UNet, UNetEncoder
from spcl_fast.segmentation.networks.encoder_unet import EncoderUNet
from spcl_fast.segmentation.networks.encoders import _FACTORIES
from spcl_fast.segmentation.runs.config import ConfigError
from spcl_fast.segmentation.runs.dataset import split_scans
from spcl_fast.segmentation.runs.network import load_segmenter

MODULE = """
from torch import nn

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.deep = nn.Conv2d(8, 12, 3, 2, 1)

    def forward(self, images):
        shallow = self.stem(images)
        middle = self.middle(shallow)
        return shallow, middle, self.deep(middle)
"""


@pytest.fixture
def model(finetune_config, tmp_path, monkeypatch):
    """The configuration of an encoder in a module that a command line can import."""
    (tmp_path / "own_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return replace(finetune_config.model, encoder="own_networks:Encoder")


# The maps of the paper's encoder; one map alone; sides that are no halves of each other.
@pytest.mark.parametrize(
    ("encoder", "channels", "sides"),
    [
        (UNetEncoder(1, 16), (1, 2, 4, 8, 16), [4, 8, 16, 32]),
        (nn.Conv2d(1, 5, 4, 4), (5,), [32]),
        (nn.AvgPool2d(2), (1,), [32]),
    ],
)
def test_maps_and_logits(encoder, channels, sides):
    net = EncoderUNet(encoder, 3).eval()
    images = torch.rand(2, 1, 32, 32)
    assert net.channels == channels
    assert [x.shape[2] for x in net.decoder(net.encode(images))] == sides
    assert net(images).shape == (2, 3, 32, 32)


def test_the_papers_encoder_makes_the_papers_network():
    torch.manual_seed(0)
    unet = UNet(1, 3, 16).eval()
    net = EncoderUNet(UNetEncoder(1, 16), 3).eval()
    net.load_state_dict(unet.state_dict())
    images = torch.rand(2, 1, 32, 48)
    with torch.no_grad():
        assert torch.equal(net(images), unet(images))


def test_a_run_with_an_encoder_of_ones_own(pretrain_config, finetune_config, model, tmp_path):
    data = finetune_config.data
    first = replace(pretrain_config, model=model, data=data, epochs=1, steps_per_epoch=2)
    encoder = pretrain(first)
    semi = SemiConfig(contrast=0.1, teacher=1.0, num_scans=2)
    config = replace(finetune_config, model=model, init=encoder, semi=semi, steps=2, val_every=2)
    result = finetune(config)
    weights = load_file(config.out / "segmenter.safetensors")
    assert {f"encoder.{name}" for name in load_file(encoder)} < weights.keys()
    loaded = load_segmenter(config.out, model)
    assert all(torch.equal(x, weights[name]) for name, x in loaded.state_dict().items())
    assert evaluate(EvaluateConfig(config.out)).dice == result.dice
    scan = split_scans(config.data).test[0]
    (written,) = predict(PredictConfig(config.out, scan.image, tmp_path / "labels"))
    saved = nibabel.load(config.out / result.scans[scan.name].prediction)
    assert np.array_equal(np.asarray(nibabel.load(written).dataobj), np.asarray(saved.dataobj))
    again = replace(config, out=tmp_path / "again", steps=1, val_every=1)
    finetune(again)
    finetune(replace(again, steps=2), resume=True)
    with pytest.raises(ConfigError, match="format must be safetensors with encoder own_networks"):
        export(ExportConfig(config.out, tmp_path / "x.pt", format="torchscript"))


class Residual(nn.Module):
    """The basic block of a ResNet."""

    def __init__(self, channels, wider, stride):
        super().__init__()
        first, second = nn.Conv2d(channels, wider, 3, stride, 1), nn.Conv2d(wider, wider, 3, 1, 1)
        norms = nn.BatchNorm2d(wider), nn.BatchNorm2d(wider)
        self.body = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1])
        self.shortcut = nn.Conv2d(channels, wider, 1, stride)

    def forward(self, x):
        return (self.body(x) + self.shortcut(x)).relu()


def resnet():
    """Return a network as torchvision's ResNet without its pooling and its classifier: one map."""
    # 8 channels: with 4, the backward of PyTorch 2.13 writes out of bounds in channels_last
    stem = nn.Sequential(nn.Conv2d(1, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU())
    blocks = [Residual(8, 8, 1), Residual(8, 8, 2), Residual(8, 16, 2), Residual(16, 32, 2)]
    return nn.Sequential(stem, nn.MaxPool2d(3, 2, 1), *blocks)


def nnunet():
    """Return the encoder of nnU-Net's plain U-Net: five maps."""
    blocks = "dynamic_network_architectures.building_blocks.plain_conv_encoder"
    make = pytest.importorskip(blocks).PlainConvEncoder
    sizes, strides = ((4, 8, 16, 16, 16), 3), (1, 2, 2, 2, 2)
    norm = {"norm_op": nn.InstanceNorm2d, "norm_op_kwargs": {"affine": True}}
    options = {"nonlin": nn.LeakyReLU, "return_skips": True, **norm}
    return make(1, 5, sizes[0], nn.Conv2d, sizes[1], strides, 2, **options)


@pytest.mark.parametrize(("factory", "maps"), [(resnet, 1), (nnunet, 5)])
def test_networks_of_others_in_both_stages(
    pretrain_config, finetune_config, factory, maps, monkeypatch
):
    monkeypatch.setitem(_FACTORIES, factory.__name__, factory)
    model = replace(finetune_config.model, encoder=factory.__name__)
    assert len(EncoderUNet(factory()).channels) == maps
    data = finetune_config.data
    first = replace(pretrain_config, model=model, data=data, epochs=1, steps_per_epoch=2)
    encoder = pretrain(first)
    weights = load_file(encoder)
    assert weights.keys() == factory().state_dict().keys()
    config = replace(finetune_config, model=model, init=encoder, steps=1, val_every=1)
    scores = finetune(config)
    assert len(scores.scans) == 4
    assert evaluate(EvaluateConfig(config.out)).dice == scores.dice


class Growing(nn.Module):
    def forward(self, images):
        return images[..., ::2, ::2], images


@pytest.mark.parametrize("encoder", [Growing(), nn.Conv2d(1, 2, 3)])
def test_maps_that_do_not_fit(encoder):
    with pytest.raises(ValueError, match="maps must go from shallow to deep, the first with a"):
        EncoderUNet(encoder)
