"""The page: what the sections hold, written as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from spcl_fast._version import __version__
from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.report import compare
from spcl_fast.segmentation.report.groups import group_runs
from spcl_fast.segmentation.report.runs import RunRecord, find_runs
from spcl_fast.segmentation.report.sections import Section, build_sections
from spcl_fast.segmentation.report.summaries import SUMMARY_FILES
from spcl_fast.segmentation.report.tables import how_it_was_run, what_was_run

MAX_VERDICTS = 5
MAX_OPEN_PROBLEMS = 8
MAX_CONFIGURATIONS = 12


def write_report(runs: Path, output: Path) -> Path:
    """Write one self-contained HTML page about every run below a folder.

    The page has its pictures inside and loads nothing. What is missing is named on the page. Of
    many runs it draws arms instead of runs, and folds long tables.

    Args:
        runs: Folder with the run folders of `pretrain` and `finetune`, or one of them; audit.json
            and reproduction.json in it are shown too.
        output: The file to write; it is replaced as a whole or not at all.

    Returns:
        output.

    Raises:
        ValueError: If there is no run, audit or reproduction below the folder.
        OSError: If the page cannot be written.
    """
    runs, output = Path(runs), Path(output)
    records, problems = find_runs(runs)
    if not records and not any(next(runs.rglob(name), None) for name in SUMMARY_FILES):
        raise ValueError(
            f"runs must be a folder with pre-training or fine-tuning runs, found none in {runs}"
        )
    sections, more_problems = build_sections(runs, records)
    problems += more_problems
    problems += [f"{run.name}: {text}" for run in records for text in run.problems]
    html = _render(records, sections, problems)
    with atomic_file(output) as partial:
        partial.write_text(html, encoding="utf-8")
    return output


def _render(
    records: Sequence[RunRecord], sections: Sequence[Section], problems: Sequence[str]
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("spcl_fast.segmentation", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    verdicts = _verdicts(records)
    return environment.get_template("template.html").render(
        sentences=verdicts[:MAX_VERDICTS],
        more_sentences=verdicts[MAX_VERDICTS:],
        run_tables=[t for t in (what_was_run(records), how_it_was_run(records)) if t],
        sections=sections,
        problems=problems,
        max_open_problems=MAX_OPEN_PROBLEMS,
        records=records,
        max_configurations=MAX_CONFIGURATIONS,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )


def _verdicts(records: Sequence[RunRecord]) -> list[str]:
    """Return the main result of every group of runs that has scores."""
    tuned = [run for run in records if run.stage == "finetune"]
    groups = group_runs([run for run in tuned if run.evaluation is not None])
    if len(groups) < 2:
        return compare.verdict(tuned)
    return [
        f"{name}: {sentence}"
        for name, members in groups.items()
        for sentence in compare.verdict(members)
    ]
