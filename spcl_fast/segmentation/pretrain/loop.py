"""Stage 1: pre-train the network on meta-labels and on views of slices; masks are not used.

    L = encoder_weight sum_k lambda_k L_k + dense_weight L_dense

The encoder's stage has only the first term; the decoder's stage only the second, on a given, frozen
encoder. With both terms, encoder and decoder are trained at once.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from spcl_fast.info import not_built
from spcl_fast.losses.result import LEAST_MEAN_WEIGHT, UNUSED_POSITIVES
from spcl_fast.native import is_built
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.contrast import plain_gamma
from spcl_fast.segmentation.pretrain.step import ENCODER_FILE, PretrainTrainer
from spcl_fast.segmentation.runs.config import check_choices
from spcl_fast.segmentation.runs.dataset import split_scans, training_slices
from spcl_fast.segmentation.runs.device import set_up_device
from spcl_fast.segmentation.runs.optim import finite_loss
from spcl_fast.segmentation.runs.progress import progress_bar, say
from spcl_fast.segmentation.runs.ranks import Ranks
from spcl_fast.segmentation.runs.run import Listener, Run

COLLAPSE_TOLERANCE = 0.01  # of log(N - 1): closer than this, the loss is that of equal rows
COLLAPSE_COSINE = 0.95  # mean cosine between rows above which an embedding is called collapsed
EPOCH_MEANS = ("loss", "mean_weight", "collapse")


def pretrain(config: PretrainConfig, *, resume: bool = False, log: Listener | None = None) -> Path:
    """Pre-train; return the path of the encoder's weights, encoder.safetensors.

    If the decoder is trained, decoder.safetensors is written beside it. On a CPU, a run that was
    killed and resumed ends with bitwise the same weights as one that was not (with the same number
    of threads).

    Args:
        config: What to train.
        resume: Continue the run of the folder, if it holds one.
        log: Called with the kind, the step and the values of every line of the log, as other
            loggers take them; of several ranks, on the first.

    Raises:
        DataError, ConfigError, CheckpointError, ValueError: One sentence for the user.
    """
    check_choices(config, "pretrain")
    device = set_up_device(config.device, config.threads, deterministic=config.deterministic)
    if device.type == "cpu" and not is_built():
        say(f"slower than it need be: the extension is {not_built()}")
    ranks = Ranks.current()
    slices = ranks.first_then_others(
        lambda: training_slices(config.data, split_scans(config.data).train)
    ).to(device)
    for scan in slices.scans_without_foreground():
        say(f"problem: {scan.mask} holds background only on the grid")
    trainer = PretrainTrainer(config, slices, device)
    steps, is_warned = config.epochs * config.steps_per_epoch, False

    run = ranks.on_first(lambda: Run.start(config.out, config, "pretrain", resume=resume))
    if run is not None:
        run.listener = log
    if resume and (state := ranks.told(ranks.on_first(lambda: run.load_state() if run else None))):
        trainer.load(state)
    if run and trainer.step == 0:
        trainer.keep_first_weights(run)
    with progress_bar(f"pretrain {config.out.name}", steps, trainer.step) as show:
        while trainer.step < steps:
            epoch, began = trainer.step // config.steps_per_epoch, time.perf_counter()
            sums = torch.zeros(3, device=device)
            for _ in range(config.steps_per_epoch):
                out = trainer.train_step()
                step, stats = trainer.step, out.stats
                sums += torch.stack([out.loss, stats["mean_weight"], stats["collapse"]])
                if step % config.log_every == 0:  # the only device-to-host copy in the loop
                    values = {name: float(value) for name, value in stats.items()}
                    values["loss"] = finite_loss(out.loss, step)
                    gamma, rows = plain_gamma(out.gamma), trainer.num_rows
                    line = {"gamma": gamma, "num_rows": rows, "lr": trainer.lr, **values}
                    if run:
                        run.log("step", step, epoch=epoch, **line)
                    if values["mean_weight"] < LEAST_MEAN_WEIGHT and not is_warned:
                        say(f"warning: {UNUSED_POSITIVES}")
                        is_warned = True
                    show(step, f"loss {values['loss']:.3f} w {values['mean_weight']:.2f}")
            finite_loss(sums[0], trainer.step)  # before the state is saved
            if run is None:  # the first rank looks at the epoch and keeps it
                continue
            means = (sums / config.steps_per_epoch).tolist()
            health = dict(zip(EPOCH_MEANS, means, strict=True)) | trainer.health(run, epoch)
            seconds = time.perf_counter() - began
            run.log("epoch", trainer.step, epoch=epoch, seconds=seconds, **health)
            report_health(epoch, health, seconds)
            run.save_state(trainer.step, **trainer.state())
    if run is None:
        return config.out / ENCODER_FILE
    path = trainer.save(run)
    run.close()
    return path


def report_health(epoch: int, health: dict[str, float], seconds: float) -> None:
    """Print the figures of an epoch, and warn of a loss that learns nothing."""
    knn, loss = health["knn_position_accuracy"], health["loss"]
    say(
        f"epoch {epoch}: loss {loss:.4f}, mean weight {health['mean_weight']:.3f}, "
        f"kNN slice position {knn:.3f}, {seconds:.1f} s"
    )
    if health["mean_weight"] == 0:
        say("warning: every pair weight was 0 in this epoch: start the pace higher")
    plateau = health["collapse_loss"]
    is_plain = health["mean_weight"] > 1 - COLLAPSE_TOLERANCE
    if is_plain and abs(loss - plateau) < COLLAPSE_TOLERANCE * plateau:
        say(f"warning: the loss sits at log(N - 1) = {plateau:.3f}: it tells no rows apart")
    if health["collapse"] > COLLAPSE_COSINE:
        say(f"warning: the embedding is collapsed: mean cosine {health['collapse']:.3f}")
