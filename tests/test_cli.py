"""The command line as a user meets it: exit codes, one clear sentence, nothing half-written."""

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from spcl_fast.cli import main
from spcl_fast.segmentation.commands.table import COMMANDS, CommandGroup, Program, load
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.phantom import PhantomConfig, write_phantom
from spcl_fast.segmentation.pretrain.step import PretrainTrainer
from spcl_fast.segmentation.runs.config import stage_config

TINY = [
    *("--data.grid.size", "32", "--data.grid.spacing-mm", "7", "--data.num-test", "2"),
    *("--model.max-channels", "16", "--log-every", "1", "--device", "cpu", "--threads", "1"),
]
PRETRAIN = [*TINY, "--epochs", "1", "--steps-per-epoch", "1", "--num-scans", "2"]
FINETUNE = [*TINY, "--steps", "1", "--batch-size", "2"]


# with this seed the damaged patient001 is a training patient
TRAIN_ON_THE_FIRST = ["--data.split-seed", "0", "--data.num-test", "1", "--data.num-val", "0"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole") / "acdc"
    return write_phantom(replace(PhantomConfig(), num_patients=5, size=48), root)


@pytest.fixture
def root(whole, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "acdc"))


def run(command, root, out, *more):
    """Run a stage; return its exit code."""
    options = PRETRAIN if command == "pretrain" else FINETUNE
    folders = ["--data.root", str(root), "--data.cache", str(out.parent / "cache")]
    return main([command, *options, *folders, "--out", str(out), *more])


def only_sentence(capsys) -> str:
    """Return the one line on stderr."""
    text = capsys.readouterr().err.strip()
    assert "\n" not in text, text
    return text


def test_stages_in_a_row(root, tmp_path, capsys):
    assert run("pretrain", root, tmp_path / "pre") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "pre" / "encoder.safetensors")
    assert run("finetune", root, tmp_path / "fine", "--init", str(tmp_path / "pre")) == 0
    assert (tmp_path / "fine" / "evaluation.csv").read_text().startswith("scan,patient,dice_RV,")
    capsys.readouterr()
    assert main(["evaluate", "--run", str(tmp_path / "fine"), "--json"]) == 0
    dice = json.loads(capsys.readouterr().out)["dice_mean"]
    assert main(["evaluate", "--run", str(tmp_path / "fine")]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == [
        "class",
        *("Dice", "sd", "lowest"),
        *("HD95", "mm", "sd", "highest"),
        "scans",
    ]
    assert next(line for line in table if line.startswith("mean")).split()[1] == f"{dice:.3f}"
    assert main(["report", "--runs", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_a_run_is_resumed_from_its_folder(root, tmp_path, capsys, monkeypatch):
    out = tmp_path / "pre"
    step, calls = PretrainTrainer.train_step, []

    def interrupted(self):
        calls.append(self.step)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(PretrainTrainer, "train_step", interrupted)
    assert run("pretrain", root, out, "--epochs", "2", "--steps-per-epoch", "2") == 130
    told = capsys.readouterr().err.splitlines()[-1]
    assert (
        told == f"spcl-fast pretrain: interrupted; continue with spcl-fast pretrain --resume {out}"
    )
    *_, command = told.partition("continue with spcl-fast ")
    assert main([*command.split(), "--loss.tau", "0.5"]) == 2
    assert only_sentence(capsys).endswith("config.yaml, with --loss.tau 0.07, got 0.5")
    assert main([*command.split(), "--out", str(tmp_path)]) == 2
    assert only_sentence(capsys).endswith(f"the folder of --resume, {out}, or left out")
    assert main(["finetune", "--resume", str(out)]) == 2
    assert "needs a run of finetune, got one of pretrain" in only_sentence(capsys)
    assert main(["pretrain", "--resume", str(tmp_path / "no")]) == 2
    assert "without config.yaml" in only_sentence(capsys)
    assert main(command.split()) == 0
    assert calls == [0, 1, 2, 3, 2, 3]
    assert main(["pretrain", "--out", str(out), "--resume", "--epochs", "3"]) == 0
    assert calls[6:] == [4, 5]
    assert "epochs: 3" in (out / "config.yaml").read_text()
    assert main(["pretrain", "--resume", str(out), "--epochs", "2"]) == 2
    assert capsys.readouterr().err.strip().endswith("with --epochs 3, got 2")


def patient(root: Path) -> Path:
    return root / "training" / "patient001"


def remove_info(root):
    (patient(root) / "Info.cfg").unlink()


def truncate_image(root):
    path = next(patient(root).glob("*_frame??.nii.gz"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def not_a_nifti(root):
    next(patient(root).glob("*_frame??.nii.gz")).write_bytes(b"hello")


def other_shape(root):
    path = next(patient(root).glob("*_gt.nii.gz"))
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), path)


def nan_voxel(root):
    path = next(patient(root).glob("*_frame??.nii.gz"))
    image = nibabel.load(path)
    values = image.get_fdata(dtype=np.float32)
    values[3, 3, 1] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, image.affine), path)


@pytest.mark.parametrize(
    ("damage", "word"),
    [  # each kind of bad data set a user meets
        (remove_info, "Info.cfg"),
        (truncate_image, "patient001"),
        (not_a_nifti, "patient001"),
        (other_shape, "shape"),
        (nan_voxel, "NaN"),
        (shutil.rmtree, "acdc"),
    ],
)
def test_bad_data_set(root, tmp_path, capsys, damage, word):
    damage(root)
    assert run("pretrain", root, tmp_path / "out", *TRAIN_ON_THE_FIRST) == 2
    assert word in only_sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_labelled_scan_that_does_not_exist(root, tmp_path, capsys):
    assert run("finetune", root, tmp_path / "out", "--labelled", "patient900_frame01") == 2
    assert "patient900_frame01" in only_sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_checkpoint_of_another_architecture(root, tmp_path, capsys):
    assert run("pretrain", root, tmp_path / "pre") == 0
    capsys.readouterr()
    more = ["--init", str(tmp_path / "pre"), "--model.max-channels", "32"]
    assert run("finetune", root, tmp_path / "out", *more) == 2
    assert "max_channels must be 32, got 16" in only_sentence(capsys)
    assert run("finetune", root, tmp_path / "out", "--init", str(tmp_path / "nowhere")) == 2
    assert "does not exist" in only_sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_unknown_key_preset_and_command(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text("pretrain: {epoch: 1}")
    assert main(["pretrain", "--config", str(config)]) == 2
    assert "did you mean 'epochs'?" in only_sentence(capsys)
    assert main(["pretrain", "--preset", "none"]) == 2
    assert "preset must be one of" in only_sentence(capsys)
    assert main(["pretrian"]) == 2
    assert "unknown command 'pretrian'" in capsys.readouterr().err
    for args, message in [
        (["pretrain", "--epoch", "1"], "--epochs INT"),
        (["finetune", "--steps", "0"], "steps must be positive, got 0"),
    ]:
        with pytest.raises(SystemExit) as caught:
            main(args)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_more_test_patients_than_there_are(root, tmp_path, capsys):
    assert run("pretrain", root, tmp_path / "out", "--data.num-test", "5") == 2
    assert "5" in only_sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written_is_named(root, tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    assert run("finetune", root, taken, "--data.num-val", "0") == 1
    assert f"spcl-fast finetune: {taken} could not be used: Not a directory" in only_sentence(
        capsys
    )
    assert main(["data", "make-phantom", "--root", str(taken / "x")]) == 1
    assert f"{taken}" in only_sentence(capsys)


def test_loss_that_is_not_finite_stops_the_run(root, tmp_path, capsys):
    more = ["--optim.lr", "1e30", "--optim.warmup", "0", "--epochs", "4", "--optim.name", "adamw"]
    assert run("pretrain", root, tmp_path / "out", *more) == 1
    assert "try a lower learning rate" in capsys.readouterr().err
    assert not (tmp_path / "out" / "encoder.safetensors").exists()


def test_more_scans_a_batch_than_there_are(root, tmp_path, capsys):
    assert run("pretrain", root, tmp_path / "out", "--num-scans", "99") == 2
    assert "num_scans must be in 1..2" in only_sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_full_disk_fails_without_a_checkpoint(root, tmp_path, capsys):
    assert run("pretrain", root, tmp_path / "first") == 0  # fills the cache
    capsys.readouterr()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
    try:
        assert run("pretrain", root, tmp_path / "out") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert "state.pt could not be written" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.pt"))
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.slow
def test_data_commands(root, tmp_path, capsys):
    assert main(["data", "inspect", "--root", str(root), "--csv", str(root / "metadata.csv")]) == 0
    assert "vendor" in capsys.readouterr().out
    picture = tmp_path / "pictures" / "scans.png"
    assert main(["data", "inspect", str(root), "--thumbnails", str(picture)]) == 0
    assert "layout      acdc" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    start = tmp_path / "start.yaml"
    assert main(["data", "inspect", str(root), "--write", str(start)]) == 0
    proposed = stage_config(FinetuneConfig, "finetune", start)
    assert (proposed.data.root, proposed.model.num_classes) == (root, 4)
    size, spacing = proposed.data.grid.size, proposed.data.grid.spacing_mm
    assert f"--data.grid.size {size} --data.grid.spacing-mm {spacing:g}" in capsys.readouterr().out
    assert main(["data", "inspect", str(root), "--config", str(start)]) == 0
    assert f"grid        {size} x {size} pixels of {spacing:g} mm leave out 0.00 %" in (
        capsys.readouterr().out
    )
    assert main(["data", "inspect", str(root), "--write", str(start)]) == 2
    assert only_sentence(capsys).endswith(f"write must be a new file, got {start}")
    assert main(["data", "inspect", str(root), "--layout", "promise12"]) == 2
    assert "scans in layout promise12, got none" in only_sentence(capsys)
    remove_info(root)
    assert main(["data", "inspect", "--root", str(root)]) == 2
    assert "Info.cfg" in capsys.readouterr().out
    made = tmp_path / "made"
    assert main(["data", "make-phantom", "--root", str(made), "--num-patients", "1"]) == 0
    assert (made / "training" / "patient001" / "Info.cfg").exists()
    assert main(["data", "make-phantom", "--root", str(root.parent)]) == 2
    assert "root must be empty or hold a phantom" in capsys.readouterr().err


HELP = """
import sys, time
start = time.process_time()
import spcl_fast
before, imported = set(sys.modules), time.process_time()
from spcl_fast.cli import main
from spcl_fast.segmentation.commands.table import COMMANDS, CommandGroup, Program, load
assert main(["--help"]) == 0
print((time.process_time() - imported) / (imported - start))
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""


def test_help_is_quick_and_light():
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]))
    command = [sys.executable, "-c", HELP]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *usage, share, modules = done.stdout.splitlines()
    assert any(line.startswith("  pretrain   ") for line in usage)
    assert not set(modules.split()) & {"tyro", "yaml", "rich", "monai", "nibabel", "matplotlib"}
    assert float(share) < 0.05  # of the time on the CPU that the library and torch take to import


ENTRIES = {
    **{name: entry for name, entry in COMMANDS.items() if not isinstance(entry, CommandGroup)},
    **{f"data {name}": entry for name, entry in COMMANDS["data"].commands.items()},
}


@pytest.mark.parametrize("name", ENTRIES)
def test_what_the_table_names_exists(name, capsys):
    entry = ENTRIES[name]
    assert callable(load(entry.function))
    if isinstance(entry, Program):
        return
    with pytest.raises(SystemExit) as caught:
        main([*name.split(), "--help"])
    assert caught.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert load(entry.config).__doc__.splitlines()[0] in printed.replace(" \u2502 ", " ")
    assert ("--resume" in printed) == entry.is_stage


def test_info_and_a_group_without_its_second_word(capsys):
    assert main(["info"]) == 0
    assert "auto on cpu" in capsys.readouterr().out
    for words in (["data"], ["data", "draw"]):
        assert main(words) == 2
        assert "data must be followed by inspect or make-phantom" in only_sentence(capsys)


@pytest.mark.parametrize("command", [["audit"], ["reproduce", "acdc"]])
def test_comparison_on_a_missing_folder_stops_at_once(command, tmp_path, capsys):
    missing, out = tmp_path / "missing", tmp_path / "out"
    assert main([*command, "--root", str(missing), "--out", str(out)]) == 2
    assert f"{missing} must be a folder, got no such folder" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("command", ["demo", "predict"])
def test_one_process_commands_refuse_several_and_say_so_once(command, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert main([command]) == 2
        said.append(capsys.readouterr().err)
    assert said[0].startswith(f"spcl-fast {command}: {command} must run in one process, got 2")
    assert said[1] == ""
