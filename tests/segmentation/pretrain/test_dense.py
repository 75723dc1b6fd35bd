"""The dense contrastive term: which cells are compared, its value, and the decoder's stage."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from spcl_fast.segmentation.data.augment import AugmentConfig
from spcl_fast.segmentation.finetune.loop import finetune
from spcl_fast.segmentation.networks import DenseProjectionHead, UNet
from spcl_fast.segmentation.pretrain import loop as module
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.dense import dense_step, draw_cells, make_dense_head
from spcl_fast.segmentation.pretrain.loop import pretrain
from spcl_fast.segmentation.pretrain.loss_config import DenseConfig
from spcl_fast.segmentation.pretrain.views import AlignedViews, aligned_views, independent_views
from spcl_fast.segmentation.runs.network import load_pretrained
from spcl_fast.segmentation.runs.run import CheckpointError, read_log


def test_drawn_cells_share_no_row_or_column():
    config = DenseConfig(size=6, cells=5)
    cells = draw_cells(40, config, torch.Generator().manual_seed(0))
    assert cells.shape == (40, 5)
    for rows, columns in zip(cells // 6, cells % 6, strict=True):
        assert len(set(rows.tolist())) == len(set(columns.tolist())) == 5
    assert set(cells.flatten().tolist()) == set(range(36))


class Identity(DenseProjectionHead):
    """The map itself as rows of unit length."""

    def forward(self, features):
        return torch.nn.functional.normalize(features, dim=1)


@pytest.mark.parametrize("flipped", [(), (2,), (2, 3)])
def test_value_on_maps_that_follow_the_flip(flipped):
    generator = torch.Generator().manual_seed(1)
    first = torch.nn.functional.normalize(torch.randn(2, 8, 3, 3, generator=generator), dim=1)
    maps = torch.cat([first, first.flip(flipped)])
    config = DenseConfig(size=3, cells=3, tau=0.5)
    out = dense_step(maps, AlignedViews(maps, flipped), Identity(8), 0.5, config, generator)
    # the positive of every cell is itself in the other view: its similarity is 1 / tau
    cells = draw_cells(2, config, replay(2, 3, seed=1, skip=(2, 8, 3, 3)))
    z = torch.stack([first[u].flatten(1)[:, c] for u in range(2) for c in cells[u]])
    z = torch.cat([z, z])
    s = (z @ z.T / 0.5).fill_diagonal_(-math.inf)
    expected = (torch.logsumexp(s, 1) - 2.0).mean()
    torch.testing.assert_close(out.loss, expected)
    assert out.stats["num_anchors"] == 12


def replay(num_images, size, *, seed, skip):
    """A generator in the state in which the cells are drawn."""
    generator = torch.Generator().manual_seed(seed)
    torch.randn(skip, generator=generator)
    return generator


@pytest.mark.parametrize("pace", ["none", "absolute", "relative", "quantile"])
def test_every_pace_has_a_gradient(pace):
    start, end = {"absolute": (5.0, 50.0), "quantile": (0.5, 0.9)}.get(pace, (1.2, 15.0))
    config = DenseConfig(size=4, cells=2, pace=pace, start=start, end=end)
    net = UNet(1, 2, 16)
    generator = torch.Generator().manual_seed(0)
    views = aligned_views(torch.rand(3, 1, 32, 32), AugmentConfig(), generator)
    maps = net.decoder(net.encode(views.images), config.num_blocks)
    assert len(maps) == 3
    head = make_dense_head(net.encoder.channels, config)
    out = dense_step(maps[-1], views, head, 0.5, config, generator)
    out.loss.backward()
    assert net.decoder.blocks[2][0].weight.grad.abs().sum() > 0
    if pace == "none":
        assert out.stats["mean_weight"] == 1


def test_aligned_views_show_the_same_place():
    images = torch.rand(4, 1, 32, 32)
    plain = AugmentConfig(brightness=(1, 1), contrast=(1, 1), gamma=(1, 1))
    for seed in range(6):
        views = aligned_views(images, plain, torch.Generator().manual_seed(seed))
        first, second = views.halves(views.images)
        torch.testing.assert_close(first, second)
    jittered = aligned_views(images, AugmentConfig(), torch.Generator().manual_seed(0))
    first, second = jittered.halves(jittered.images)
    assert (first - second).abs().mean() > 0.01
    apart = independent_views(images, plain, torch.Generator().manual_seed(0))
    assert (apart[:4] - apart[4:]).abs().mean() > 0.01


def test_decoder_stage_leaves_the_encoder_as_it_is(pretrain_config, finetune_config, tmp_path):
    first = pretrain(replace(pretrain_config, epochs=1))
    dense = DenseConfig(size=4, cells=2, pace="relative")
    stage = replace(pretrain_config, out=tmp_path / "decoder", init=first, dense=dense, epochs=2)
    path = pretrain(replace(stage, encoder_weight=0.0, dense_weight=1.0))
    before, after = load_file(first), load_file(path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    decoder = load_file(path.with_name("decoder.safetensors"))
    assert {name.split(".")[1] for name in decoder} == {"0", "1", "2"}
    (epoch, _) = (r for r in read_log(path.parent / "metrics.jsonl") if r["kind"] == "epoch")
    assert epoch["collapse_loss"] == pytest.approx(math.log(2 * 4 * 3 * 2 - 1))
    model = UNet(1, 4, 16)
    last = model.decoder.ups[3][0].weight.clone()
    load_pretrained(model, path.parent, finetune_config.model)
    assert torch.equal(model.decoder.ups[1][0].weight, decoder["ups.1.0.weight"])
    assert torch.equal(model.decoder.ups[3][0].weight, last)  # up_conv2 is not in the file
    config = replace(finetune_config, init=path.parent, allow_pretrained_test=True)
    result = finetune(config)
    assert result.initialised_from == "decoder"
    big = replace(finetune_config.model, max_channels=32)
    with pytest.raises(CheckpointError, match="max_channels must be 32, got 16"):
        load_pretrained(UNet(1, 4, 32), path.parent, big)


def test_both_stages_at_once_resume_bitwise(pretrain_config, tmp_path, monkeypatch):
    dense = DenseConfig(size=4, cells=2)
    config = replace(pretrain_config, dense=dense, dense_weight=0.5, epochs=2)
    whole = pretrain(replace(config, out=tmp_path / "whole"))
    stopped = replace(config, out=tmp_path / "stopped")

    def stop(epoch, *_):
        if epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "report_health", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(stopped)
    monkeypatch.undo()
    resumed = pretrain(stopped, resume=True)
    for name in ("encoder.safetensors", "decoder.safetensors"):
        one, other = load_file(whole.with_name(name)), load_file(resumed.with_name(name))
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_bad_configurations():
    with pytest.raises(ValueError, match="init and dense_weight must be given"):
        PretrainConfig(encoder_weight=0.0, dense_weight=1.0)
    with pytest.raises(ValueError, match=r"cells must be in 1..4 \(size\), got 5"):
        DenseConfig(size=4, cells=5)
