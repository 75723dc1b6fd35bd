"""The sections of the page, each from what is in the run folders or a sentence why it is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from spcl_fast.segmentation.report import compare, tables
from spcl_fast.segmentation.report.cases import case_table, pair_picture
from spcl_fast.segmentation.report.curves import finetuning_curves, pretraining_curves
from spcl_fast.segmentation.report.efficiency import efficiency_picture
from spcl_fast.segmentation.report.embedding import embedding_picture
from spcl_fast.segmentation.report.figures import Picture
from spcl_fast.segmentation.report.groups import group_runs
from spcl_fast.segmentation.report.meta_grid import meta_grid_picture
from spcl_fast.segmentation.report.noise_audit import audit_table, roc_picture, trend_picture
from spcl_fast.segmentation.report.overlays import overlay_picture, worst_picture
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

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.pictures and not self.tables


def build_sections(root: Path, records: Sequence[RunRecord]) -> tuple[list[Section], list[str]]:
    """Return the sections that show something, and sentences about what could not be shown.

    Runs of different data, grids or protocols have sections of their own.
    """
    reproduction, problems = _reproduction(root)
    audit, more_problems = _audit(root)
    groups = group_runs(records)
    results, details = [], []
    for name, members in groups.items():
        own = _of_group(members)
        for section in own:
            section.title += f": {name}" if len(groups) > 1 else ""
        results.append(own[0])
        details += own[1:]
    sections = [*results, reproduction, *details, audit]
    problems += more_problems
    problems += [text for section in sections if section.is_empty for text in section.missing]
    return [section for section in sections if not section.is_empty], problems


def _of_group(members: Sequence[RunRecord]) -> list[Section]:
    """Return the sections about runs that may be compared, their results first."""
    pretrained = [run for run in members if run.stage == "pretrain"]
    tuned = [run for run in members if run.stage == "finetune"]
    return [
        *(_results(tuned), _predictions(tuned), _fine_tuning(tuned), _pre_training(pretrained)),
        *(*_of_each_pretraining(pretrained), _meta_labels(pretrained, tuned)),
    ]


def _results(tuned: Sequence[RunRecord]) -> Section:
    section = Section("Results")
    by_arm = compare.arms(tuned)
    if by_arm:
        section.tables.extend(tables.result_tables(by_arm))
        _add(section, partial(_result_picture, by_arm))
    return section


def _result_picture(by_arm: dict[str, list[RunRecord]]) -> Picture | None:
    """Return the curves over the number of labelled scans, or the scans of a single pair."""
    runs = [run for members in by_arm.values() for run in members]
    if len(runs) == 1:
        return None
    names = list(by_arm)
    if len(runs) == len(names) == 2 and names[0] == compare.SCRATCH:
        pairs = compare.pairs_of(by_arm[names[0]], by_arm[names[1]])
        if pairs:
            return pair_picture(pairs[0], names[1])
    return efficiency_picture(by_arm)


def _reproduction(root: Path) -> tuple[Section, list[str]]:
    section = Section("Reproduction of the paper")
    found, problems = find_reproductions(root)
    for name, result in list(found.items())[:MAX_SUMMARIES]:
        section.tables.append(reproduction_table(result))
        draw = partial(reproduction_picture, result)
        _add(section, draw, f"{name} holds no Dice of ours yet, so it is not drawn.")
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
    return section, problems


def _predictions(tuned: Sequence[RunRecord]) -> Section:
    section = Section("What the networks predict")
    scored = [run for run in tuned if run.evaluation is not None]
    drawn = [run for run in scored if _names_predictions(run)]
    chosen, how = compare.shown_runs(drawn or scored)
    if not compare.common_scans(chosen):
        chosen, how = chosen[-1:], "the last starting point, as no test scan is shared"
    table = case_table(chosen, how) if chosen else None
    if scored and not drawn:
        section.missing.append("No evaluated run has predictions on file (finetune.predictions).")
    elif chosen:
        _add(section, partial(overlay_picture, chosen, how))
        if not section.missing:
            _add(section, partial(worst_picture, chosen, how))
    if table is not None:
        section.tables.append(table)
    return section


def _names_predictions(run: RunRecord) -> bool:
    return all(scan.prediction for scan in run.scores.scans.values())


def _fine_tuning(tuned: Sequence[RunRecord]) -> Section:
    section = Section("Fine-tuning")
    _add(section, partial(finetuning_curves, tuned))
    return section


def _pre_training(pretrained: Sequence[RunRecord]) -> Section:
    section = Section("Pre-training")
    _add(section, partial(pretraining_curves, pretrained))
    return section


def _of_each_pretraining(pretrained: Sequence[RunRecord]) -> list[Section]:
    weights, embedding = Section("Self-paced weights"), Section("Embedding")
    drawn = _representatives(pretrained)
    for run in drawn:
        _add(weights, partial(weight_picture, run), f"{run.name} has no weights to draw.")
        _add(embedding, partial(embedding_picture, run), f"{run.name} has no embedding yet.")
    for section in (weights, embedding):
        if len(drawn) < len(pretrained):
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
    _add(section, partial(meta_grid_picture, tuned, _num_partitions(pretrained)))
    return section


def _num_partitions(pretrained: Sequence[RunRecord]) -> int:
    for run in pretrained:
        value = look_up(run.config, "pretrain", "loss", "num_partitions")
        if isinstance(value, int) and value > 0:
            return value
    return DEFAULT_PARTITIONS


def _add(section: Section, draw: Callable[[], Picture | None], missing: str = "") -> None:
    """Add a picture, or the sentence, if any, about why there is none."""
    try:
        picture = draw()
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:  # users' files
        section.missing.append(f"A picture is missing: {_sentence(error)}.")
        return
    if picture is not None:
        section.pictures.append(picture)
    elif missing:
        section.missing.append(missing)


def _sentence(error: Exception) -> str:
    text = str(error).rstrip(".")
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
