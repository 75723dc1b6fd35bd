"""The sections of the page, each from what is in the run folders or a sentence why it is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from spcl_fast.segmentation.report import compare, tables
from spcl_fast.segmentation.report.curves import finetuning_curves, pretraining_curves
from spcl_fast.segmentation.report.efficiency import efficiency_picture
from spcl_fast.segmentation.report.embedding import embedding_picture
from spcl_fast.segmentation.report.figures import Picture
from spcl_fast.segmentation.report.meta_grid import meta_grid_picture
from spcl_fast.segmentation.report.noise_audit import audit_table, roc_picture, trend_picture
from spcl_fast.segmentation.report.overlays import overlay_picture
from spcl_fast.segmentation.report.pairs import weight_picture
from spcl_fast.segmentation.report.reproduction import reproduction_picture, reproduction_table
from spcl_fast.segmentation.report.runs import RunRecord, look_up
from spcl_fast.segmentation.report.summaries import find_audits, find_reproductions
from spcl_fast.segmentation.report.tables import Table

DEFAULT_PARTITIONS = 3
MAX_DRAWN_RUNS = 4
MAX_SUMMARIES = 4


@dataclass
class Section:
    """A section of the page.

    Attributes:
        title: Heading.
        pictures: Drawn below the tables.
        tables: Tables.
        missing: Sentences about what the runs lack.
        notes: Sentences about what was not asked for or is left out on purpose.
    """

    title: str
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build_sections(root: Path, records: Sequence[RunRecord]) -> tuple[list[Section], list[str]]:
    """Return the sections in their order, and sentences about unreadable summaries."""
    pretrained = [run for run in records if run.stage == "pretrain"]
    tuned = [run for run in records if run.stage == "finetune"]
    reproduction, problems = _reproduction(root)
    audit, more_problems = _audit(root)
    sections = [
        *(_results(tuned), reproduction, _predictions(tuned), _fine_tuning(tuned)),
        *(_pre_training(pretrained), *_of_each_pretraining(pretrained)),
        *(_meta_labels(pretrained, tuned), audit),
    ]
    return sections, problems + more_problems


def _results(tuned: Sequence[RunRecord]) -> Section:
    section = Section("Results")
    by_arm = compare.arms(tuned)
    if not by_arm:
        section.missing.append(
            "No fine-tuning run has been evaluated yet, so there is no table and no curve over "
            "the number of labelled scans."
        )
        return section
    section.tables.extend(tables.result_tables(by_arm))
    draw = partial(efficiency_picture, by_arm)
    _add(section, draw, "The evaluations hold no Dice, so there is no label-efficiency curve.")
    return section


def _reproduction(root: Path) -> tuple[Section, list[str]]:
    section = Section("Reproduction of the paper")
    found, problems = find_reproductions(root)
    for name, result in list(found.items())[:MAX_SUMMARIES]:
        section.tables.append(reproduction_table(result))
        draw = partial(reproduction_picture, result)
        _add(section, draw, f"{name} holds no Dice of ours yet, so it is not drawn.")
    if not found:
        section.notes.append(
            "There is no readable reproduction.json here; spcl-fast reproduce writes one."
        )
    return section, problems


def _audit(root: Path) -> tuple[Section, list[str]]:
    section = Section("Noise audit")
    found, problems = find_audits(root)
    for name, audit in list(found.items())[:MAX_SUMMARIES]:
        section.tables.append(audit_table(audit))
        draw = partial(roc_picture, audit)
        _add(section, draw, f"{name} holds no ROC curve (no noise, or no pace).")
        draw = partial(trend_picture, audit)
        _add(section, draw, f"{name} holds neither AUC nor Dice.")
    if not found:
        section.notes.append("There is no readable audit.json here; spcl-fast audit writes one.")
    return section, problems


def _predictions(tuned: Sequence[RunRecord]) -> Section:
    section = Section("What the networks predict")
    chosen, how = compare.shown_runs([run for run in tuned if _has_predictions(run)])
    missing = "No evaluated run has predictions on file (finetune.predictions)."
    _add(section, partial(overlay_picture, chosen, how), missing)
    return section


def _has_predictions(run: RunRecord) -> bool:
    return run.evaluation is not None and all(s.prediction for s in run.scores.scans.values())


def _fine_tuning(tuned: Sequence[RunRecord]) -> Section:
    section = Section("Fine-tuning")
    _add(section, partial(finetuning_curves, tuned), "There is no fine-tuning run with a log.")
    return section


def _pre_training(pretrained: Sequence[RunRecord]) -> Section:
    section = Section("Pre-training")
    draw = partial(pretraining_curves, pretrained)
    _add(section, draw, "There is no pre-training with a log.")
    return section


def _of_each_pretraining(pretrained: Sequence[RunRecord]) -> list[Section]:
    weights, embedding = Section("Self-paced weights"), Section("Embedding")
    drawn = _representatives(pretrained)
    for run in drawn:
        _add(weights, partial(weight_picture, run), f"{run.name} has no weights to draw.")
        _add(embedding, partial(embedding_picture, run), f"{run.name} has no embedding yet.")
    for section in (weights, embedding):
        if not pretrained:
            section.missing.append("There is no pre-training run.")
        elif len(drawn) < len(pretrained):
            section.notes.append(
                f"Drawn for {len(drawn)} of {len(pretrained)} pre-trainings, one seed of each; for "
                "another, write a report of its own folder."
            )
    return [weights, embedding]


def _representatives(pretrained: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the runs to draw one by one: one seed of each, spread where there are still many."""
    if len(pretrained) <= MAX_DRAWN_RUNS:
        return list(pretrained)
    firsts: dict[str, RunRecord] = {}
    for run in pretrained:
        firsts.setdefault(compare.SEED.sub("", run.name), run)
    runs = list(firsts.values())
    count = min(MAX_DRAWN_RUNS, len(runs))
    last = len(runs) - 1
    return [runs[round(k * last / max(1, count - 1))] for k in range(count)]


def _meta_labels(pretrained: Sequence[RunRecord], tuned: Sequence[RunRecord]) -> Section:
    section = Section("Meta-labels")
    draw = partial(meta_grid_picture, tuned, _num_partitions(pretrained))
    missing = "The pictures come from the scans of an evaluated run; there is none."
    _add(section, draw, missing)
    return section


def _num_partitions(pretrained: Sequence[RunRecord]) -> int:
    for run in pretrained:
        value = look_up(run.config, "pretrain", "loss", "num_partitions")
        if isinstance(value, int) and value > 0:
            return value
    return DEFAULT_PARTITIONS


def _add(section: Section, draw: Callable[[], Picture | None], missing: str) -> None:
    """Add a picture, or the sentence about why there is none."""
    try:
        picture = draw()
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:  # users' files
        section.missing.append(f"A picture is missing: {_sentence(error)}.")
        return
    if picture is None:
        section.missing.append(missing)
    else:
        section.pictures.append(picture)


def _sentence(error: Exception) -> str:
    text = str(error).rstrip(".")
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
