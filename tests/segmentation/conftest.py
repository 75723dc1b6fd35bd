"""A phantom of six patients and configurations that train in seconds."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from spcl_fast.segmentation.data.grid import Grid
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.phantom import PhantomConfig, write_phantom
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.loss_config import LossConfig
from spcl_fast.segmentation.runs.dataset import DataConfig
from spcl_fast.segmentation.runs.network import ModelConfig
from spcl_fast.segmentation.runs.optim import OptimConfig

sys.path.append(str(Path(__file__).parent / "runs"))  # modules that tests and ranks share
SMALL = """
data: {grid: {size: 32, spacing_mm: 7.0}, num_test: 2, num_val: 0}
model: {max_channels: 16}
pretrain:
  loss: {labels: [position, phase], weights: [1.0, 0.1], projector_batch_norm: true}
  dense: {size: 4, cells: 2}
  num_scans: 3
  epochs: 1
  steps_per_epoch: 2
finetune:
  steps: 2
  batch_size: 4
  semi: {num_scans: 2, loss: {projector_batch_norm: true}}
"""


@pytest.fixture(scope="session")
def phantom(tmp_path_factory):
    """Six patients in ACDC's layout."""
    root = tmp_path_factory.mktemp("phantom") / "acdc"
    return write_phantom(replace(PhantomConfig(), num_patients=6, size=48), root)


@pytest.fixture(scope="session")
def data_config(phantom, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    grid = Grid(size=32, spacing_mm=7.0)
    return DataConfig(
        root=phantom, csv=phantom / "metadata.csv", cache=cache, grid=grid, num_test=2
    )


@pytest.fixture
def pretrain_config(data_config, tmp_path):
    return PretrainConfig(
        out=tmp_path / "pretrain",
        data=replace(data_config, num_val=0),
        model=ModelConfig(max_channels=16),
        loss=LossConfig(projector_batch_norm=True),
        optim=OptimConfig(lr=1e-3),
        num_scans=4,
        epochs=3,
        steps_per_epoch=4,
        log_every=2,
        device="cpu",
        threads=1,
    )


@pytest.fixture
def finetune_config(data_config, tmp_path):
    return FinetuneConfig(
        out=tmp_path / "finetune",
        data=replace(data_config, num_val=1),
        model=ModelConfig(max_channels=16),
        optim=OptimConfig(lr=3e-3),
        steps=6,
        batch_size=4,
        val_every=3,
        save_every=2,
        log_every=2,
        device="cpu",
        threads=1,
    )


@pytest.fixture
def preset_file(tmp_path):
    """A preset whose stages take two steps each."""
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file


@pytest.fixture
def small_discriminator():
    """Make the discriminator of the adversarial term narrow, where no test is about it."""
    from narrow import narrow_discriminator

    with narrow_discriminator():
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """Make the figures of the reports without their pixels, where no test looks at them."""
    from spcl_fast.segmentation.report import figures

    monkeypatch.setattr(figures, "to_png", lambda figure: b"")
