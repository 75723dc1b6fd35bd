"""Configuration files: strict, coerced by annotation, and what a run writes can be read back."""

from dataclasses import replace
from pathlib import Path

import pytest

from spcl_fast.segmentation import finetune, pretrain
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.finetune.semi.config import SemiConfig
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.loss_config import LossConfig
from spcl_fast.segmentation.runs.config import (
    ConfigError,
    dump_config,
    preset_names,
    preset_path,
    stage_config,
)
from spcl_fast.segmentation.runs.optim import OptimConfig


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_file_overrides_defaults_and_keeps_the_rest(tmp_path):
    text = "data: {num_test: 5}\npretrain: {epochs: 7, loss: {start: [2]}}"
    config = stage_config(PretrainConfig, "pretrain", write(tmp_path, text))
    assert (config.data.num_test, config.epochs, config.loss.start) == (5, 7, (2.0,))
    assert config.steps_per_epoch == PretrainConfig().steps_per_epoch


def test_number_that_yaml_reads_as_text(tmp_path):
    path = write(tmp_path, "pretrain: {optim: {lr: 3e-4}}")
    assert stage_config(PretrainConfig, "pretrain", path).optim.lr == 3e-4


def test_resolved_configuration_reads_back(tmp_path):
    config = replace(FinetuneConfig(), init=Path("a/b"), labelled=("x", "y"), steps=3)
    path = write(tmp_path, dump_config(config, "finetune", "name"))
    assert stage_config(FinetuneConfig, "finetune", path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [  # one case a kind of mistake
        ("pretrian: {}", "unknown section 'pretrian'; did you mean 'pretrain'?"),
        ("pretrain: {epoch: 3}", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("pretrain: {loss: {tua: 1}}", "pretrain.loss: unknown key 'tua'; did you mean 'tau'?"),
        ("pretrain: {epochs: on}", "pretrain.epochs must be int, got True"),
        ("pretrain: {epochs: 1.5}", "pretrain.epochs must be int, got 1.5"),
        ("pretrain: {optim: {lr: fast}}", "pretrain.optim.lr must be float, got 'fast'"),
        ("pretrain: {optim: {name: sgd}}", "pretrain.optim.name must be one of radam, adamw"),
        ("pretrain: {augment: {scale: [1]}}", "pretrain.augment.scale must have 2 values"),
        ("pretrain: {loss: 3}", "pretrain.loss must hold keys, got 3"),
        ("pretrain: [1]", "section 'pretrain' must hold keys"),
        ("pretrain: {data: {}}", "'data' belongs at the top level"),
        ("a: [", "is not valid YAML"),
        ("just words", "must hold sections"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        stage_config(PretrainConfig, "pretrain", write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# What code gives no parser has read: an unknown pace would be the quantile one.
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            PretrainConfig(loss=LossConfig(pace="quantil")),
            "pretrain.loss.pace must be one of none, ",
        ),
        (PretrainConfig(optim=OptimConfig("adam")), "pretrain.optim.name must be one of radam, "),
        (FinetuneConfig(select="bset"), "finetune.select must be one of last, best, got 'bset'"),
        (FinetuneConfig(semi=SemiConfig(loss=LossConfig(mode="soft"))), "finetune.semi.loss.mode"),
    ],
)
def test_words_that_code_gives(config, message):
    with pytest.raises(ConfigError, match=message):
        pretrain(config) if isinstance(config, PretrainConfig) else finetune(config)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *((LossConfig, name, -1.0) for name in ("tau", "power", "position_window")),
        *((LossConfig, name, (1.0, float("nan"))) for name in ("start", "end")),
        (LossConfig, "num_partitions", 0),
        *((OptimConfig, name, -1.0) for name in ("lr", "lr_final", "weight_decay", "warmup")),
        (OptimConfig, "lr", float("nan")),
    ],
)
def test_numbers_out_of_range(kind, name, value):
    labels = {"labels": ("position", "patient")} if kind is LossConfig else {}
    with pytest.raises(ValueError, match=f"{name} must be "):
        kind(**labels, **{name: value})


def test_missing_file_and_preset(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        stage_config(PretrainConfig, "pretrain", tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="preset must be one of acdc-cpu"):
        preset_path("acdc")


@pytest.mark.parametrize("name", preset_names())
def test_presets_fit_both_stages(name):
    pretrain = stage_config(PretrainConfig, "pretrain", preset_path(name))
    finetune = stage_config(FinetuneConfig, "finetune", preset_path(name))
    assert pretrain.data == finetune.data != PretrainConfig().data
