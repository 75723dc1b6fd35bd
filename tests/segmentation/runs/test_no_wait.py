"""A training step reads nothing from its device, and the host waits for no copy to it.

The device is PyTorch's "meta", whose tensors hold no values: reading one is an error.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spcl_fast.segmentation.finetune.semi.config import TERMS, SemiConfig
from spcl_fast.segmentation.finetune.step import FinetuneTrainer
from spcl_fast.segmentation.pretrain.loss_config import DenseConfig
from spcl_fast.segmentation.pretrain.step import PretrainTrainer
from spcl_fast.segmentation.runs.dataset import split_scans, training_slices

META = torch.device("meta")
DENSE = DenseConfig(size=4, cells=2)
SLOW_TERMS = [pytest.param(term, marks=pytest.mark.slow) for term in TERMS if term != "contrast"]


class Copies(TorchDispatchMode):
    """Counts copies to the device; one that waits is an error."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name()
        is_sent = name == "aten::_to_copy" and kwargs.get("device") == META
        is_sent |= name == "aten::copy_" and args[0].device == META
        if is_sent and args[name == "aten::copy_"].device.type == "cpu":
            assert kwargs.get("non_blocking"), "the host waits for a copy"
            self.count += 1
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # not on META


def slices_on_device(config):
    slices = training_slices(config.data, split_scans(config.data).train)
    return replace(slices, images=slices.images.to(META), masks=slices.masks.to(META))


def columns_on_device(owner):
    owner.columns = {name: column.to(META) for name, column in owner.columns.items()}


@pytest.mark.parametrize("dense_weight", [0.0, 1.0])
def test_a_step_of_the_pretraining(pretrain_config, dense_weight):
    config = replace(pretrain_config, dense_weight=dense_weight, dense=DENSE)
    trainer = PretrainTrainer(config, slices_on_device(config), META)
    columns_on_device(trainer)
    with Copies() as copies:
        out = trainer.train_step()
    assert out.loss.device == META
    assert copies.count == (5 if dense_weight else 3)


@pytest.mark.parametrize("term", [None, "contrast", *SLOW_TERMS])
def test_a_step_of_the_finetuning(finetune_config, term):
    semi = SemiConfig(dense=DENSE, num_scans=2)
    semi = semi if term is None else replace(semi, **{term: 1.0})
    slices = slices_on_device(finetune_config)
    trainer = FinetuneTrainer(replace(finetune_config, semi=semi), slices, META)
    if term == "contrast":
        columns_on_device(trainer.semi.terms[term])
    with Copies() as copies:
        parts = trainer.train_step(slices.images, slices.masks)
    assert parts["loss"].device == META
    assert copies.count >= (3 if term is None else 6)


def test_what_would_wait_is_found():
    x = torch.ones(3)
    with Copies(), pytest.raises(AssertionError, match="waits for a copy"):
        x.to(META)
    with pytest.raises(RuntimeError, match="meta"):
        x.to(META).sum().item()
