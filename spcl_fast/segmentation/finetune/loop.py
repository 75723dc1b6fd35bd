"""Stage 2: train the segmenter on a few labelled scans, from scratch or a pre-trained network.

    L = L_sup + sum over the terms of `SemiConfig` of weight x term

L_sup is cross-entropy plus soft Dice on labelled slices. The terms use all training slices, without
their masks. From scratch with the contrastive term, this is the one-stage training of equation 4 of
arXiv:2107.13741.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.slices import Slices
from spcl_fast.segmentation.evaluate.axes import turning_to
from spcl_fast.segmentation.evaluate.case_table import write_scores
from spcl_fast.segmentation.evaluate.reading import Reading
from spcl_fast.segmentation.evaluate.record import Evaluation
from spcl_fast.segmentation.evaluate.scans import (
    check_classes,
    check_scans,
    evaluate_scans,
    slice_dice,
)
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.finetune.step import FinetuneTrainer
from spcl_fast.segmentation.runs.config import ConfigError, check_choices
from spcl_fast.segmentation.runs.dataset import Split, pick_labelled, split_scans, training_slices
from spcl_fast.segmentation.runs.device import set_up_device
from spcl_fast.segmentation.runs.network import segmenter_metadata
from spcl_fast.segmentation.runs.optim import finite_loss
from spcl_fast.segmentation.runs.pretrained_on import read_pretrained_on
from spcl_fast.segmentation.runs.progress import progress_bar, say
from spcl_fast.segmentation.runs.ranks import Ranks
from spcl_fast.segmentation.runs.run import Listener, Run, save_weights


def finetune(
    config: FinetuneConfig, *, resume: bool = False, log: Listener | None = None
) -> Evaluation:
    """Train on the labelled scans, evaluate on the test scans; return the evaluation.

    Args:
        config: What to train.
        resume: Continue the run of the folder, if it holds one.
        log: Called with the kind, the step and the values of every line of the log, as other
            loggers take them; of several ranks, on the first.

    Raises:
        DataError, ConfigError, CheckpointError, ValueError: One sentence for the user.
    """
    check_choices(config, "finetune")
    device = set_up_device(config.device, config.threads, deterministic=config.deterministic)
    ranks = Ranks.current()
    data = ranks.first_then_others(lambda: _prepare(config, device))
    trainer = FinetuneTrainer(config, data.slices, device)
    run = ranks.on_first(lambda: Run.start(config.out, config, "finetune", resume=resume))
    if run is not None:
        run.listener = log
    if resume and (state := ranks.told(ranks.on_first(lambda: run.load_state() if run else None))):
        trainer.load(state)
    _train(config, trainer, data, run)
    evaluation = ranks.on_first(lambda: _result(config, trainer, data))
    if run is not None:
        run.close()
    return ranks.told(evaluation)  # type: ignore[return-value]


class Prepared(NamedTuple):
    """What a fine-tuning trains on, checked."""

    split: Split
    chosen: list[int]  # labelled scans, among the training scans
    seen: list[str]  # patients of the pre-training
    slices: Slices
    labelled: Slices
    val: Slices | None
    reading: Reading


def _prepare(config: FinetuneConfig, device: torch.device) -> Prepared:
    split = split_scans(config.data)
    check_classes([*split.train, *split.val, *split.test], config.model.num_classes)
    seen = _seen_before(config, split)
    chosen = pick_labelled(
        split.train, names=config.labelled, count=config.num_labelled, pick=config.pick
    )
    is_semi = bool(config.semi.weights)
    scans = split.train if is_semi else [split.train[i] for i in chosen]
    slices = training_slices(config.data, scans).to(device)
    labelled = slices.select(chosen) if is_semi else slices
    val = training_slices(config.data, split.val).to(device) if split.val else None
    if config.select == "best" and (val is None or config.val_every > config.steps):
        raise ConfigError("select must be last without a point of validation, got best")
    _check_labelled(labelled)
    geometries = check_scans(split.test, config.absent_class, config.data.grid)
    for note in (note for geometry in geometries for note in geometry.notes):
        say(note)
    reading = Reading.of_scans([*split.train, *split.val, *split.test])
    reading = replace(reading, turning=turning_to(geometries))
    return Prepared(split, chosen, seen, slices, labelled, val, reading)


def _train(
    config: FinetuneConfig, trainer: FinetuneTrainer, data: Prepared, run: Run | None
) -> None:
    """Take the steps that are left; the first rank, which has the run, logs and keeps states."""
    step, val, labelled = trainer.step, data.val, data.labelled
    with progress_bar(f"finetune {config.out.name}", config.steps, step) as show:
        while step < config.steps:
            losses = trainer.train_step(labelled.images, labelled.masks)
            step = trainer.step
            is_saved = step % config.save_every == 0 or step == config.steps
            if is_saved or step % config.log_every == 0:  # on every rank: all of them stop
                finite_loss(losses["loss"], step)
            if run is None:
                continue
            if step % config.log_every == 0:  # the only device-to-host copy in the loop
                values = {name: float(value) for name, value in losses.items()}
                run.log("step", step, **values, lr=trainer.lr)
                show(step, f"loss {values['loss']:.3f}")
            if val is not None and step % config.val_every == 0:
                dice = slice_dice(trainer.evaluated, val, absent=config.absent_class)
                mean = sum(dice.values()) / max(1, len(dice))
                run.log("val", step, dice=dice, dice_mean=mean)
                trainer.keep_best(mean)
            if is_saved:
                run.save_state(step, **trainer.state())


def _result(config: FinetuneConfig, trainer: FinetuneTrainer, data: Prepared) -> Evaluation:
    """Save the network that is selected; return its scores, and write and tell them."""
    trainer.select()
    split = data.split
    evaluation = replace(
        _evaluate(config, trainer.evaluated, data.reading, split),
        labelled_scans=tuple(split.train[i].name for i in data.chosen),
        num_training_scans=len(split.train),
        initialised_from=None if config.init is None else run_name(config.init),
        pretrained_patients=tuple(data.seen),
    )
    if split.test:
        write_scores(config.out, evaluation)
    scores = evaluation.summary() if split.test else "no test scans, so there are no scores"
    say(f"{config.out.name}: {scores}")
    return evaluation


def _evaluate(
    config: FinetuneConfig, network: nn.Module, reading: Reading, split: Split
) -> Evaluation:
    """Save the network and return its scores on the test scans."""
    metadata = segmenter_metadata(config.model) | reading.metadata()
    save_weights(config.out / "segmenter.safetensors", network.state_dict(), metadata)
    predictions = config.out / "predictions" if config.predictions else None
    return evaluate_scans(network, split.test, config.data.grid, predictions, config.absent_class)


def _seen_before(config: FinetuneConfig, split: Split) -> list[str]:
    """Return the test and validation patients that the pre-training saw.

    Raises:
        ConfigError: There are some, and `allow_pretrained_test` is False.
    """
    if config.init is None:
        return []
    known = read_pretrained_on(config.init)
    if known is None:
        say(f"warning: {config.init} does not say which patients it was pre-trained on")
        return []
    if known.grid not in (None, config.data.grid):
        say(f"warning: pre-trained on {known.grid}, fine-tuned on {config.data.grid}")
    seen = known.seen_of(config.data, [*split.val, *split.test])
    if seen and not config.allow_pretrained_test:
        raise ConfigError(
            f"init must not have seen test or validation patients, got {', '.join(seen)}: split "
            "the data alike in both stages, or use --allow-pretrained-test"
        )
    return seen


def _check_labelled(slices: Slices) -> None:
    """Refuse a labelled scan from which nothing can be learnt."""
    for scan in slices.scans_without_foreground():
        raise DataError(f"{scan.mask} must hold labelled voxels on the grid, got background only")


def run_name(init: Path) -> str:
    """Return the name of the pre-training run that `init`, its folder or file, belongs to."""
    return init.parent.name if init.suffix == ".safetensors" else init.name
