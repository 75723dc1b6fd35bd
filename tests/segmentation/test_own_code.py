"""The job's parts in a program of one's own: configurations as objects, encoders, loggers."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import spcl_fast.segmentation as job
from spcl_fast.segmentation.networks.encoders import (
    _FACTORIES,
    make_encoder,
    num_features,
    register_encoder,
)
from spcl_fast.segmentation.runs.config import preset_names, stage_config
from spcl_fast.segmentation.runs.run import CheckpointError

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from spcl_fast.segmentation import (
    DataConfig, FinetuneConfig, Grid, ModelConfig, PredictConfig, PretrainConfig,
    finetune, predict, preset, pretrain,
)

root, out = Path(sys.argv[1]), Path(sys.argv[2])
data = DataConfig(root, cache=out / "cache", grid=Grid(32, 7.0), num_test=2, num_val=0)
small = dict(data=data, model=ModelConfig(max_channels=16), threads=1, device="cpu")
first = replace(preset(PretrainConfig, "acdc-cpu"), **small, num_scans=3)
lines = []
encoder = pretrain(
    replace(first, out=out / "pretrain", epochs=1, steps_per_epoch=2, log_every=1),
    log=lambda kind, step, values: lines.append((kind, step, values["loss"])),
)
assert [line[:2] for line in lines] == [("step", 1), ("step", 2), ("epoch", 2)]
second = FinetuneConfig(**small, out=out / "finetune", init=encoder, steps=2, batch_size=2)
scores = finetune(second, log=lambda kind, step, values: lines.append(kind))
image = next(root.rglob("*_frame01.nii.gz"))
(labels,) = predict(PredictConfig((second.out,), image, out / "labels", device="cpu"))
assert labels.exists() and 0 <= scores.dice_mean <= 1
"""


class OwnEncoder(nn.Sequential):
    """A small network that returns one map, as those of other libraries do."""

    def __init__(self):
        conv = nn.Conv2d(1, 6, 3, stride=4)
        super().__init__(conv, nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 12, 3, stride=2))


def basic_unet_encoder():
    """Return the contracting half of MONAI's BasicUNet."""
    from monai.networks.nets import BasicUNet

    net = BasicUNet(2, 1, 2, features=(8, 8, 8, 8, 16, 8))
    return nn.Sequential(net.conv_0, net.down_1, net.down_2, net.down_3, net.down_4)


@pytest.fixture
def own():
    """The names of two encoders, registered for a test."""
    register_encoder("own", OwnEncoder)
    register_encoder("monai", basic_unet_encoder)
    yield
    del _FACTORIES["own"], _FACTORIES["monai"]


@pytest.mark.slow
def test_a_script_with_configurations_as_objects(phantom, tmp_path):
    words = [sys.executable, "-c", SCRIPT, str(phantom), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_documented_lines_run_one_after_another(phantom, preset_file, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "own-code.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    folder = tmp_path / "empty"
    (folder / "new_scans").mkdir(parents=True)
    monkeypatch.chdir(folder)
    Path("ACDC").symlink_to(phantom)
    shutil.copy(next(phantom.rglob("*_frame01.nii.gz")), "new_scans")

    def small(cls, name):
        assert name in preset_names()
        stage = cls.__name__.removesuffix("Config").lower()
        return replace(stage_config(cls, stage, preset_file), threads=1)

    logged = []
    monkeypatch.setattr(job, "preset", small, raising=False)
    wandb = SimpleNamespace(log=lambda numbers, step: logged.append((numbers, step)))
    names = {"wandb": wandb}
    for block in blocks:
        exec(compile(block, "docs/own-code.md", "exec"), names)
    del _FACTORIES["basic-unet"]
    assert 0 <= names["scores"].dice_mean <= 1
    assert [step for numbers, step in logged if "epoch/loss" in numbers] == [2]
    assert len(list(Path("labels").iterdir())) == 1
    encoder = names["BasicUNetEncoder"]()
    encoder.load_state_dict(load_file("runs/own-encoder/encoder.safetensors"))


def test_all_names_exist():
    for name in job.__all__:
        assert callable(getattr(job, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = job.nothing


@pytest.mark.parametrize("name", ["own", "monai"])
def test_an_encoder_of_ones_own_is_pretrained(pretrain_config, tmp_path, own, name):
    model = replace(pretrain_config.model, encoder=name)
    config = replace(pretrain_config, model=model, epochs=1, steps_per_epoch=2)
    path = job.pretrain(config)
    torch.manual_seed(config.seed)
    encoder = make_encoder(name)
    before = {key: x.clone() for key, x in encoder.state_dict().items()}
    weights = load_file(path)
    encoder.load_state_dict(weights)
    assert any(not torch.equal(before[key], x) for key, x in weights.items())
    assert num_features(encoder, 32) == {"own": 12, "monai": 16}[name]
    again = replace(config, init=path, out=tmp_path / "again")
    assert job.pretrain(again).exists()
    other = replace(again, out=tmp_path / "other", model=pretrain_config.model)
    with pytest.raises(CheckpointError, match="max_channels must be 16, got nothing"):
        job.pretrain(other)
    written = stage_config(job.PretrainConfig, "pretrain", config.out / "config.yaml")
    assert written.model.encoder == name


def test_encoders_that_cannot_be_used(pretrain_config, finetune_config, own):
    model = replace(pretrain_config.model, encoder="torch.nn:Nothing")
    with pytest.raises(ValueError, match="module:factory or one of unet, own, monai, got 'torch"):
        job.pretrain(replace(pretrain_config, model=model))
    with pytest.raises(ValueError, match="dense_weight must be 0"):
        replace(pretrain_config, model=model, dense_weight=1.0)
    with pytest.raises(ValueError, match="module:factory or one of unet, own, monai, got 'torch"):
        job.finetune(replace(finetune_config, model=model))
    semi = job.SemiConfig(mutual_information=1.0)
    with pytest.raises(ValueError, match=r"semi\.mutual_information must be 0 with encoder torch"):
        replace(finetune_config, model=model, semi=semi)
    with pytest.raises(ValueError, match="name must be new"):
        register_encoder("own", OwnEncoder)
    with pytest.raises(ValueError, match=r"maps must be \(2, C, h, w\)"):
        num_features(nn.Flatten(), 8)
    with pytest.raises(ValueError, match="must make a module, got dict"):
        make_encoder("builtins:dict")
    assert isinstance(make_encoder("torch.nn:Identity"), nn.Identity)


def test_batches_of_groups_for_any_data_set(data_config):
    scan = torch.arange(4).repeat_interleave(6)
    place, length = torch.arange(6).repeat(4), torch.full((24,), 6)
    dataset = torch.utils.data.TensorDataset(torch.arange(24))
    sample = job.GroupSampler(
        *(scan, place, length),
        num_scans=2,
        num_partitions=3,
        slices_per_partition=1,
        generator=torch.Generator().manual_seed(0),
    )
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=job.GroupBatches(sample, 5))
    batches = [index for (index,) in loader]
    assert len(batches) == len(loader) == 5
    partition = job.position_partition(place, length, 3)
    for index in batches:
        assert scan[index].unique().numel() == 2
        assert sorted(partition[index].tolist()) == [0, 0, 1, 1, 2, 2]


def test_paths_of_the_packages_stay(tmp_path):
    assert Path(job.pretrain.__file__).name == "__init__.py"
    assert job.finetune.__name__ == "spcl_fast.segmentation.finetune"
