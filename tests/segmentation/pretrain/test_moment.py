"""The pairs of a moment are those of the loss: the same positives, with the same weights."""

import pytest
import torch

from spcl_fast.ops import pair_lse, positive_pair_loss
from spcl_fast.segmentation.networks import ProjectionHead
from spcl_fast.segmentation.networks.evaluation_mode import evaluation_mode
from spcl_fast.segmentation.pretrain.loss_config import LossConfig
from spcl_fast.segmentation.pretrain.moment import Moment

# float32 positions whose differences lie at the edge of the window; partitions, some unknown
LABELS = {0.1: torch.arange(24) / 20, 0.0: torch.arange(24) % 4 - 1}


@pytest.mark.parametrize("window", LABELS)
@pytest.mark.parametrize("mode", ["linear", "hard"])
def test_pairs_of_a_moment_are_those_of_the_loss(window, mode):
    torch.manual_seed(0)
    config = LossConfig(
        position_window=window, pace="relative", start=(0.5,), end=(2.0,), mode=mode
    )
    head = ProjectionHead(8, out=16, batch_norm=True)
    maps, labels = torch.randn(24, 8, 2, 2), LABELS[window]
    pairs = Moment(5, 0.5, 24, head, config).pairs(maps, labels)
    assert head.training
    with torch.no_grad(), evaluation_mode(head):
        z = head(maps)
    lse = pair_lse(z, config.tau)
    settings = {"tau": config.tau, "gamma": pairs.gamma, "mode": mode}
    out = positive_pair_loss(z, lse, labels, **settings, window=config.window_of("position"))
    assert torch.equal(pairs.positive.sum(1), out.num_pos)
    weights = torch.where(pairs.positive, pairs.weight, 0)
    torch.testing.assert_close(weights.sum(1), out.weight_sum, rtol=1e-4, atol=1e-5)
    assert 0 < weights.sum() < pairs.positive.sum()
    shown = Moment(5, 0.5, 24, head, config).pairs(maps, labels, 10)
    torch.testing.assert_close(shown.weight, pairs.weight[:10, :10])
    assert torch.equal(shown.positive, pairs.positive[:10, :10])


def fail_in_evaluation_mode(network):
    with evaluation_mode(network):
        assert not network.training
        raise KeyError


@pytest.mark.parametrize("was_training", [True, False])
def test_the_mode_of_a_network_survives_an_error(was_training):
    head = ProjectionHead(8).train(was_training)
    with pytest.raises(KeyError):
        fail_in_evaluation_mode(head)
    assert head.training == was_training
