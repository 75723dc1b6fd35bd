"""A folder of small synthetic runs, written as the trainer writes them."""

import itertools
import json
import math
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from spcl_fast.segmentation.report import write_report

CLASSES = ["RV", "MYO", "LV"]


def save_nifti(path: Path, volume: np.ndarray) -> str:
    """Write a (S, H, W) volume with voxels of 1.5 x 1.5 x 10 mm."""
    affine = np.diag([1.5, 1.5, 10.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(volume.T), affine), path)
    return str(path)


def heart(seed: int, slices: int = 10, side: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Return image float32 and labels uint8, (S, H, W): a ring of muscle and a crescent."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side].astype(float)
    labels = np.zeros((slices, side, side), dtype=np.uint8)
    for k in range(slices):
        shrink = math.sqrt(1 - (k / slices) ** 2.2)
        r = np.hypot(y - side / 2, x - side * 0.55)
        right = np.hypot((y - side / 2) / 1.3, x - side * 0.38) < 0.16 * side * shrink
        labels[k][right] = 1
        labels[k][r < 0.17 * side * shrink] = 2
        labels[k][r < 0.10 * side * shrink] = 3
    brightness = np.array([0.3, 0.9, 0.45, 1.0])[labels]
    image = 400 * (brightness + rng.normal(0, 0.06, labels.shape))
    return image.astype(np.float32), labels


def write_config(folder: Path, stage: str, **details: object) -> None:
    folder.mkdir(parents=True)
    config = {"stage": stage, "name": folder.name, "data": {"root": None}, stage: details}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def write_log(folder: Path, rows: list[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_pretrain(folder: Path, gamma: object = 4.0) -> None:
    """Write a pre-training of 4 epochs of 50 steps."""
    loss = {"labels": ["position"], "num_partitions": 3, "pace": "relative"}
    write_config(folder, "pretrain", loss=loss, seed=7)
    rows: list[dict] = []
    for step in range(10, 201, 10):
        value = 3.0 + 1.05 * math.exp(-step / 60)
        row = {"kind": "step", "step": step, "epoch": (step - 1) // 50, "loss": value}
        row |= {"objective": value - 1, "mean_weight": step / 250, "gamma": gamma}
        rows.append({**row, "lr": 1e-3, "collapse": 0.1, "num_rows": 60})
        if step % 50 == 0:
            row = {"kind": "epoch", "epoch": step // 50 - 1, "step": step, "loss": value}
            row |= {"collapse_loss": math.log(59), "mean_weight": step / 250, "seconds": 2.0}
            rows.append({**row, "knn_position_accuracy": 0.2 + step / 1000})
    write_log(folder, rows)
    write_embedding(folder)
    write_weights(folder)


def write_embedding(folder: Path) -> None:
    rng = np.random.default_rng(0)
    position = ((np.arange(10) + 0.5) / 10)[None].repeat(8, 0).ravel().astype(np.float32)
    patient, phase = np.arange(80) // 20, np.arange(80) // 10 % 2
    z = rng.normal(0, 0.2, (80, 16)).astype(np.float32)
    z[:, 0] += 3 * position
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    group = patient % 2
    np.savez(
        folder / "embedding.npz", z=z, position=position, patient=patient, phase=phase, group=group
    )


def write_weights(folder: Path) -> None:
    (folder / "weights").mkdir()
    scan = np.repeat([0, 1], 10)
    index = np.tile(np.arange(10), 2)
    position = ((index + 0.5) / 10).astype(np.float32)
    partition = 3 * index // 10
    positive = (partition[:, None] == partition) & ~np.eye(20, dtype=bool)
    for step in (50, 100, 150, 200):
        similarity = 1 - 2 * np.abs(position[:, None] - position) * step / 200
        weight = np.clip(similarity * step / 200, 0, 1)
        np.savez(
            folder / "weights" / f"step_{step:06d}.npz",
            weight=np.where(positive, weight, 0).astype(np.float32),
            similarity=similarity.astype(np.float32),
            position=position,
            scan=scan,
            positive=positive,
            gamma=np.float64(4 + step / 50),
            step=np.int64(step),
        )


def write_finetune(
    folder: Path, source: str | None, labelled: list[str], shift: float, *, volumes: bool = True
) -> dict:
    """Write an evaluated fine-tuning; `shift` moves every Dice. Returns its evaluation."""
    write_config(folder, "finetune", seed=1)
    rows: list[dict] = []
    for step in range(10, 101, 10):
        rows.append({"kind": "step", "step": step, "loss": 1 / step, "lr": 1e-3})
        if step % 50 == 0:
            dice = {name: step / 200 + shift + 0.1 * i for i, name in enumerate(CLASSES)}
            mean = float(np.mean(list(dice.values())))
            rows.append({"kind": "val", "step": step, "dice": dice, "dice_mean": mean})
    write_log(folder, rows)
    scans = {}
    for number in range(4):
        name = f"patient{number // 2 + 1:03d}_frame{1 + 11 * (number % 2):02d}"
        dice = {c: 0.5 + shift + 0.1 * i - 0.05 * number for i, c in enumerate(CLASSES)}
        scans[name] = {"dice": dice, "hd95_mm": dict.fromkeys(CLASSES, 8.0 - 10 * shift + number)}
        scans[name]["patient"] = name.partition("_")[0]
        if volumes:
            image, labels = heart(number, slices=6 + number)
            prediction = np.roll(labels, number + 1, axis=2)
            for key, volume in (("image", image), ("mask", labels), ("prediction", prediction)):
                scans[name][key] = f"{name}_{key}.nii.gz"
                save_nifti(folder / scans[name][key], volume)
    evaluation = {"classes": CLASSES, "scans": scans, "labelled_scans": labelled}
    evaluation |= {"initialised_from": source, "num_training_scans": 12}
    for key in ("dice", "hd95_mm"):
        evaluation[key] = {c: float(np.mean([s[key][c] for s in scans.values()])) for c in CLASSES}
    evaluation["dice_mean"] = float(np.mean(list(evaluation["dice"].values())))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return evaluation


def write_audit(root: Path) -> None:
    """Write an audit of three paces, three noise levels and two seeds; "linear" finds the noise."""
    rows = []
    for seed in range(2):
        for noise in (0.0, 0.1, 0.4):
            for k, pace in enumerate(("none", "hard", "linear")):
                row = {"pace": pace, "noise": noise, "seed": seed, "auc": None, "auc_loss": None}
                row |= {"mean_weight": 1 - 0.2 * k, "roc": None}
                row["dice"] = [0.6 - noise / 2 + 0.05 * k + 0.01 * pick for pick in range(3)]
                if noise:
                    row["auc_loss"] = 0.7 + 0.01 * seed
                if noise and k:
                    fpr = np.linspace(0, 1, 21)
                    row["roc"] = {"fpr": fpr.tolist(), "tpr": (fpr ** (0.5 / k)).tolist()}
                    row["auc"] = 1 / (1 + 0.5 / k)
                rows.append(row)
    paired = {pace: {} for pace in ("hard", "linear")}
    for noise, (k, pace) in itertools.product(("0", "0.1", "0.4"), enumerate(paired, 1)):
        pair = {"mean": 0.05 * k, "interval_95": [0.04 * k, 0.06 * k], "by_run": [0.05 * k] * 6}
        paired[pace][noise] = pair | {"up": 6, "pairs": 6}
    content = {"rows": rows, "paces": ["none", "hard", "linear"], "noise": [0.0, 0.1, 0.4]}
    content |= {"paired_with": "none", "paired": paired}
    (root / "audit.json").write_text(json.dumps(content))


def write_reproduction(root: Path) -> None:
    """Write a reproduction of three methods; "all" has neither paper nor mix-up, as it may."""
    names = {"scratch": "Labelled scans only", "mixup": "Mix-up", "ours": "Self-paced, semi"}
    methods, paired = [], {}
    for k, (key, name) in enumerate(names.items()):
        paper = {"1": [60.87 + k, 1.28], "2": [67.45 + k, 0.84]} if k else {}
        dice = {c: [0.5 + 0.1 * i + 0.02 * k + 0.01 * s for s in range(3)] for i, c in COUNTS}
        if k == 1:
            del dice["all"]
        methods.append({"key": key, "name": name, "paper": paper, "dice": dice})
        pair = {"mean": 0.02 * k, "interval_95": [0.01 * k, 0.03 * k], "up": 2, "pairs": 3}
        paired |= {key: dict.fromkeys(dice, pair)} if k else {}
    content = {"dataset": "acdc", "protocol": "spcl", "scale": "cpu", "seeds": [10, 20, 30]}
    content |= {"labelled": [1, 2, "all"], "methods": methods, "reference": "scratch"}
    (root / "reproduction.json").write_text(json.dumps(content | {"paired": paired}))


COUNTS = tuple(enumerate(("1", "2", "all")))


def write_many(root: Path) -> int:
    """Write a folder like that of a large reproduction; return the number of its runs."""
    arms = [None, *(f"encoder-{k}" for k in range(11))]
    seeds = (10, 20, 30)
    for seed in seeds:
        for arm in arms[1:]:
            write_pretrain(root / f"{seed}-{arm}")
        for k, arm in enumerate(arms):
            for count in (1, 2, 4):
                source = None if arm is None else f"{seed}-{arm}"
                labelled = [f"patient{90 + n:03d}_frame01" for n in range(count)]
                folder = root / f"{seed}-{count}-{arm}"
                shift = 0.01 * k + 0.001 * seed + 0.02 * count
                write_finetune(folder, source, labelled, shift, volumes=False)
    return len(seeds) * (len(arms) - 1 + 3 * len(arms))


@pytest.fixture(scope="session")
def many_runs(tmp_path_factory):
    """A folder of 141 runs, and their number; read only."""
    root = tmp_path_factory.mktemp("many") / "runs"
    return root, write_many(root)


@pytest.fixture(scope="session")
def page_of_many_runs(many_runs, tmp_path_factory):
    """The page of that folder, and the seconds of CPU that it took."""
    start = time.process_time()
    page = write_report(many_runs[0], tmp_path_factory.mktemp("page") / "report.html").read_text()
    return page, time.process_time() - start


@pytest.fixture(scope="session")
def full_runs(tmp_path_factory):
    """One pre-training, and two pairs of fine-tunings that gain 0.05 and 0.06; read only."""
    root = tmp_path_factory.mktemp("full") / "runs"
    write_pretrain(root / "position")
    for pick, labelled in enumerate(("patient090_frame01", "patient091_frame01")):
        write_finetune(root / f"scratch{pick}", None, [labelled], 0.0)
        write_finetune(root / f"position{pick}", "position", [labelled], 0.05 + 0.01 * pick)
    write_audit(root)
    write_reproduction(root)
    return root


@pytest.fixture(scope="session")
def full_page(full_runs, tmp_path_factory):
    """The page of that folder; read only."""
    return write_report(full_runs, tmp_path_factory.mktemp("page") / "new" / "report.html")


@pytest.fixture
def pretrain_folder(tmp_path):
    """A pre-training run of one's own to damage."""
    write_pretrain(tmp_path / "runs" / "position")
    return tmp_path / "runs" / "position"


@pytest.fixture
def finetune_folder(tmp_path):
    """A fine-tuning run of one's own to damage."""
    write_finetune(tmp_path / "runs" / "scratch", None, ["patient090_frame01"], 0.0)
    return tmp_path / "runs" / "scratch"


@pytest.fixture
def add_finetune(tmp_path):
    """Write a fine-tuning without volumes below a folder of one's own; return the folder."""

    def add(name: str, source: str | None, shift: float) -> Path:
        folder = tmp_path / "runs" / name
        write_finetune(folder, source, ["patient090_frame01"], shift, volumes=False)
        return folder

    return add
