"""Write a phantom data set to disk, in the layout of one of several public data sets.

The file ``phantom.json`` in its root holds the configuration and marks the folder as a phantom.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from spcl_fast.atomic_file import atomic_file, remove_partials
from spcl_fast.segmentation.phantom.config import PhantomConfig
from spcl_fast.segmentation.phantom.layouts import LAYOUTS, LayoutWriter
from spcl_fast.segmentation.phantom.patient import make_patient

MARKER = "phantom.json"
VERSION = 1  # increase when the same configuration gives other images
_UNFINISHED = ".unfinished-"


def write_phantom(
    config: PhantomConfig,
    root: Path | str,
    layout: str = "acdc",
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write every patient of a phantom data set; patients completed by an earlier call are kept.

    A patient is written to a temporary folder, and then its files are renamed into place, so an
    interrupted call leaves only complete patients, and a second call completes the set. (If a
    layout has several files per patient and the process is killed between two renames, the next
    call rewrites that patient.)

    Args:
        config: The data set.
        root: Folder to write to; created if missing.
        layout: A name in `spcl_fast.segmentation.phantom.layouts.LAYOUTS`.
        progress: Called with (patients done, patients in all) after each patient.

    Returns:
        ``root``, ready for the reader of that layout.

    Raises:
        ValueError: There is no such layout, ``root`` is a file, holds other files, or a phantom
            of another configuration or layout, or the layout needs a package that is missing.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    root, form = Path(root), LAYOUTS[layout]
    _claim(config, root, layout)
    remove_partials(root)
    parent = root / form.folder
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob(f"{_UNFINISHED}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
    for index in range(config.num_patients):
        if not (parent / form.last(index)).exists():
            _write_patient(config, index, form, parent)
            _write_tables(config, root, form, index + 1)
        if progress is not None:
            progress(index + 1, config.num_patients)
    _write_tables(config, root, form, config.num_patients)
    return root


def _claim(config: PhantomConfig, root: Path, layout: str) -> None:
    """Create the folder, or check that it holds this phantom."""
    if root.exists() and not root.is_dir():
        raise ValueError(f"root must be a folder, got the file {root}")
    root.mkdir(parents=True, exist_ok=True)
    marker = root / MARKER
    of_layout = {} if layout == "acdc" else {"layout": layout}  # without a mention it is ACDC's
    mark = json.dumps({"version": VERSION, **of_layout, **asdict(config)}, indent=2) + "\n"
    if marker.exists():
        if marker.read_text(encoding="utf-8", errors="replace") != mark:
            raise ValueError(f"root must be empty or hold this phantom, got another one in {root}")
        return
    if any(root.iterdir()):
        raise ValueError(f"root must be empty or hold a phantom, got other files in {root}")
    _write_text(marker, mark)


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _write_tables(config: PhantomConfig, root: Path, form: LayoutWriter, num_patients: int) -> None:
    for name, text in form.tables(config, root, num_patients).items():
        _write_text(root / name, text)


def _write_patient(config: PhantomConfig, index: int, form: LayoutWriter, parent: Path) -> None:
    patient = make_patient(config, index)
    folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=parent))
    moved: list[Path] = []
    try:
        for name in form.write(patient, index, folder):
            moved.append(parent / name)
            moved[-1].parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder / name, moved[-1])
    except BaseException:  # also KeyboardInterrupt: leave nothing unfinished
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
