"""Exported encoders and segmenters compute what the network of the run does, elsewhere too."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from spcl_fast.cli import main
from spcl_fast.segmentation.commands.export import ExportConfig, export
from spcl_fast.segmentation.data.grid import Grid
from spcl_fast.segmentation.evaluate.export import SUFFIXES
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.runs.config import ConfigError, dump_config
from spcl_fast.segmentation.runs.dataset import DataConfig
from spcl_fast.segmentation.runs.network import (
    ModelConfig,
    encoder_metadata,
    load_encoder,
    segmenter_metadata,
)
from spcl_fast.segmentation.runs.run import CheckpointError, save_weights

SMALL = ModelConfig(num_classes=3, max_channels=64)
DATA = DataConfig(grid=Grid(size=32, spacing_mm=2.5))
CHANNELS = (4, 8, 16, 32, 64)
PAGE = Path(__file__).parents[3] / "docs" / "export.md"


def network(config):
    """A network whose norms have statistics, scales and shifts of their own."""
    torch.manual_seed(0)
    model = UNet(1, config.num_classes, config.max_channels)
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            value.normal_(0.0, 0.3)
        elif name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1):
            value.uniform_(0.5, 2.0)
        elif name.endswith("num_batches_tracked"):
            value.fill_(7)
    return model.eval()


def make_run(folder, stage, config=SMALL):
    """A run folder with what `export` reads; return its network."""
    folder.mkdir()
    model = network(config)
    if stage == "pretrain":
        whole = PretrainConfig(data=DATA, model=config, epochs=3)
        weights, metadata = model.encoder.state_dict(), encoder_metadata(config)
        save_weights(folder / "encoder.safetensors", weights, metadata)
    else:
        whole = FinetuneConfig(data=DATA, model=config, steps=5)
        metadata = segmenter_metadata(config)
        save_weights(folder / "segmenter.safetensors", model.state_dict(), metadata)
    (folder / "config.yaml").write_text(dump_config(whole, stage, folder.name))
    return model


def image(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def assert_maps_equal(maps, model, x):
    """Five maps equal those of the encoder of `model`."""
    expected = model.encode(x)
    assert len(maps) == len(expected) == 5
    for actual, wanted in zip(maps, expected, strict=True):
        assert wanted.abs().max() > 0.01  # of a dead network everything would be equal
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])  # each has its own file of weights
def test_encoder_for_ourselves(tmp_path, stage):
    model = make_run(tmp_path / "run", stage)
    path = export(ExportConfig(tmp_path / "run", tmp_path / "new" / "encoder.safetensors"))
    again = UNet(1, 4, 64)  # another number of classes, as a new task has
    load_encoder(again, path, replace(SMALL, num_classes=4))
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(again.encoder.state_dict()[name], value), name
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["grid_size"] == "32"
        assert file.metadata()["grid_spacing_mm"] == "2.5"


@torch.no_grad()
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])  # as above
@pytest.mark.parametrize("bias", [True, False])  # MONAI's default; as ours
def test_encoder_for_monai(tmp_path, stage, bias):
    nets = pytest.importorskip("monai.networks.nets")
    model = make_run(tmp_path / "run", stage)
    path = export(ExportConfig(tmp_path / "run", tmp_path / "monai.safetensors", "monai"))
    net = nets.BasicUNet(2, 1, 3, (*CHANNELS, 4), act="relu", norm="batch", bias=bias).eval()
    loaded = net.load_state_dict(load_file(path), strict=False)
    assert all(name.startswith(("upcat", "final_conv")) for name in loaded.missing_keys)
    assert all(name.endswith("conv.bias") and not bias for name in loaded.unexpected_keys)
    x = image(2, 1, 32, 48)
    maps = [net.conv_0(x)]
    for block in (net.down_1, net.down_2, net.down_3, net.down_4):
        maps.append(block(maps[-1]))
    assert_maps_equal(maps, model, x)


def test_names_for_nnunet(tmp_path):
    model = make_run(tmp_path / "run", "pretrain")
    path = export(ExportConfig(tmp_path / "run", tmp_path / "nnunet.safetensors", "nnunet"))
    named, ours = load_file(path), model.encoder.state_dict()
    pairs = {  # one of each kind of layer: first level, after a max-pool, second convolution
        "stages.0.0.convs.0.conv.weight": "blocks.0.0.weight",
        "stages.0.0.convs.0.norm.running_mean": "blocks.0.1.running_mean",
        "stages.1.1.convs.0.all_modules.0.weight": "blocks.1.0.weight",
        "stages.4.1.convs.1.norm.bias": "blocks.4.4.bias",
        "stages.4.1.convs.1.all_modules.1.running_var": "blocks.4.4.running_var",
    }
    for theirs, name in pairs.items():
        assert torch.equal(named[theirs], ours[name]), theirs
    assert len(named) == 2 * len(ours)


@torch.no_grad()
def test_encoder_for_nnunet(tmp_path):
    blocks = "dynamic_network_architectures.building_blocks.plain_conv_encoder"
    module = pytest.importorskip(blocks)
    model = make_run(tmp_path / "run", "finetune")
    path = export(ExportConfig(tmp_path / "run", tmp_path / "nnunet.safetensors", "nnunet"))
    encoder = module.PlainConvEncoder(
        *(1, 5, CHANNELS, torch.nn.Conv2d, 3, (1, 2, 2, 2, 2), 2),
        norm_op=torch.nn.BatchNorm2d,
        nonlin=torch.nn.ReLU,
        return_skips=True,
        pool="max",
    )
    encoder.load_state_dict(load_file(path))
    x = image(2, 1, 32, 48)
    assert_maps_equal(encoder.eval()(x), model, x)


LOAD = """
import sys, json, torch
sys.modules["spcl_fast"] = None  # so that an import of it fails
images, out, *paths = sys.argv[1:]
found = []
for path in paths:
    extra = {"spcl_fast.json": ""}
    if path.endswith(".pt"):
        net = torch.jit.load(path, _extra_files=extra)
    else:
        net = torch.export.load(path, extra_files=extra).module()
    with torch.no_grad():
        logits = [net(image) for image in torch.load(images)]
    found.append([json.loads(extra["spcl_fast.json"]), logits])
torch.save(found, out)
"""
PROGRAMS = ("torchscript", "torch-export")  # the two kinds of program


@torch.no_grad()
@pytest.mark.slow
def test_segmenters_in_a_process_without_this_package(tmp_path):
    model = make_run(tmp_path / "run", "finetune")
    paths = [
        str(export(ExportConfig(tmp_path / "run", tmp_path / f"net{SUFFIXES[name]}", name)))
        for name in PROGRAMS
    ]
    # one slice, the shape that was traced or not, taller than wide, larger than the grid
    images = [image(1, 1, 32, 32), image(2, 1, 32, 48), image(5, 1, 64, 32), image(1, 1, 96, 112)]
    torch.save(images, tmp_path / "images.pt")
    files = [str(tmp_path / "images.pt"), str(tmp_path / "logits.pt"), *paths]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *files], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "logits.pt")
    assert len(found) == len(PROGRAMS)
    grid = {"grid_size": 32, "grid_spacing_mm": 2.5}
    for about, logits in found:
        assert about == {**grid, "num_classes": 3, "multiple_of": 16}
        for x, actual in zip(images, logits, strict=True):
            torch.testing.assert_close(actual, model(x), rtol=1e-5, atol=1e-6)
        assert logits[0].std() > 0.01


@pytest.mark.parametrize(
    ("out", "name", "message"),
    [  # the wrong suffix of each kind; a program of an encoder
        ("net.pt", "monai", r"out must end in \.safetensors for monai"),
        ("net.pt", "torch-export", r"out must end in \.pt2 for torch-export"),
        ("net.pt", "torchscript", r"run must hold segmenter\.safetensors for torchscript"),
        ("net.pt2", "torch-export", r"run must hold segmenter\.safetensors for torch-export"),
    ],
)
def test_what_cannot_be_exported(tmp_path, out, name, message):
    make_run(tmp_path / "run", "pretrain")
    with pytest.raises(ConfigError, match=message):
        export(ExportConfig(tmp_path / "run", tmp_path / "new" / out, name))
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten_and_no_weights(tmp_path):
    make_run(tmp_path / "run", "pretrain")
    file = tmp_path / "run" / "encoder.safetensors"
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="out must be a new file"):
        export(ExportConfig(tmp_path / "run", file, "nnunet"))
    assert file.read_bytes() == before
    file.unlink()
    with pytest.raises(CheckpointError, match="run must hold encoder"):
        export(ExportConfig(tmp_path / "run", tmp_path / "new.safetensors"))
    with pytest.raises(ConfigError, match="config file"):
        export(ExportConfig(tmp_path / "none", tmp_path / "new.safetensors"))


def test_weights_of_another_format_are_not_taken_for_an_encoder(tmp_path):
    make_run(tmp_path / "run", "pretrain")
    path = export(ExportConfig(tmp_path / "run", tmp_path / "m.safetensors", "monai"))
    with pytest.raises(CheckpointError, match="part must be encoder, got encoder of monai"):
        load_encoder(UNet(1, 3, 64), path, SMALL)


def code_of(heading):
    """The Python of a section of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))


@pytest.mark.parametrize(
    ("heading", "needs"),
    [  # the sections that have code, and the package it imports
        ("MONAI", "monai"),
        ("nnU-Net", "dynamic_network_architectures"),
        ("The segmenter without this package", "torch"),
    ],
)
def test_the_page(tmp_path, monkeypatch, capsys, heading, needs):
    pytest.importorskip(needs)
    make_run(tmp_path / "run", "finetune", ModelConfig(num_classes=4, max_channels=256))
    monkeypatch.chdir(tmp_path)
    outs = {"MONAI": "monai", "nnU-Net": "nnunet"}
    name = outs.get(heading, "torchscript")
    out = "segmenter.pt" if name == "torchscript" else f"{name}.safetensors"
    assert main(["export", "--run", "run", "--out", out, "--format", name]) == 0
    assert capsys.readouterr().out.strip() == out
    found: dict = {}
    exec(code_of(heading), found)
    if name == "torchscript":
        assert found["labels"].shape == (10, 32, 32)
        assert found["about"]["num_classes"] == 4
