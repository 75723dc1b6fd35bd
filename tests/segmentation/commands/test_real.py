"""Both stages on real volumes: ACDC trains, and the segmenter runs on scans of another source."""

import math
from dataclasses import replace

import pytest

from spcl_fast.segmentation.commands.evaluate import EvaluateConfig, evaluate
from spcl_fast.segmentation.finetune.loop import finetune
from spcl_fast.segmentation.pretrain.loop import pretrain
from spcl_fast.segmentation.runs.dataset import split_scans


@pytest.fixture
def acdc(real_data, tmp_path):
    """Eight real patients, by links: four groups of two."""
    training = tmp_path / "acdc" / "training"
    training.mkdir(parents=True)
    for number in (1, 2, 21, 22, 41, 42, 81, 82):
        name = f"patient{number:03d}"
        (training / name).symlink_to(real_data / "acdc" / "training" / name)
    return training.parent


@pytest.mark.slow
def test_real_scans_from_end_to_end(acdc, real_data, pretrain_config, finetune_config, tmp_path):
    data = replace(finetune_config.data, root=acdc, csv=None, cache=tmp_path / "cache", num_test=3)
    split = split_scans(data)
    assert [len(scans) for scans in split] == [8, 2, 6]
    encoder = pretrain(replace(pretrain_config, data=data, epochs=1))
    result = finetune(replace(finetune_config, data=data, init=encoder.parent))
    assert set(result.scans) == {scan.name for scan in split.test}
    assert 0 <= result.dice_mean <= 1
    other = evaluate(EvaluateConfig(finetune_config.out, root=real_data / "sunnybrook5"))
    assert len(other.scans) == 10
    assert math.isnan(other.dice["RV"])  # not annotated there
    assert all(other.hd95_mm[name] >= 0 for name in ("MYO", "LV"))
    assert other.absences == {"RV": 10, "MYO": 6}
