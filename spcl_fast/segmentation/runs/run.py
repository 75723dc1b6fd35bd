"""A run folder: the resolved configuration, a log, and checkpoints that are whole or absent.

    config.yaml            what was run
    provenance.json        command, versions and hardware of every start
    metrics.jsonl          one JSON object a line
    state.pt               model, optimiser, generator, step: everything a restart needs
    *.safetensors          weights, with their architecture in the metadata

Files are written by `atomic_file`.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spcl_fast.atomic_file import atomic_file, remove_partials
from spcl_fast.segmentation.runs.config import ConfigError, dump_config
from spcl_fast.segmentation.runs.provenance import note_start
from spcl_fast.segmentation.runs.resume import CONFIG_FILE, check_agreement

STATE_FORMAT = 1
Listener = Callable[[str, int, dict[str, Any]], None]  # the kind of a line, its step and values


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one sentence for the user."""


class Run:
    """One run folder, opened by `Run.start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listener: Listener | None = None
        self._log = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._tensorboard = _tensorboard_writer(folder)

    @classmethod
    def start(cls, folder: Path, config: Any, stage: str, *, resume: bool) -> Run:
        """Make the folder and write the resolved configuration, or reopen it with `resume`.

        A run may be resumed with more epochs or steps than before, which the file then has.

        Raises:
            ConfigError: The folder holds a run and `resume` is False, or it holds another run.
        """
        text = dump_config(config, stage, folder.name)
        written = folder / CONFIG_FILE
        remove_partials(folder)
        if written.exists():
            if not resume:
                raise ConfigError(f"out must be a new folder, got {folder} which holds a run")
            check_agreement(written, config, stage)
        elif folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"out must be a new or empty folder, got {folder}")
        if not written.exists() or written.read_text(encoding="utf-8") != text:
            with atomic_file(written) as path:
                path.write_text(text, encoding="utf-8")
        note_start(folder)
        return cls(folder)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    def log(self, kind: str, step: int, **values: Any) -> None:
        """Append one line to metrics.jsonl; tell TensorBoard, where installed, and the listener."""
        self._log.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._log.flush()
        if self._tensorboard is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._tensorboard.add_scalar(f"{kind}/{name}", value, step)
        if self.listener is not None:
            self.listener(kind, step, values)

    def save_state(self, step: int, **parts: Any) -> None:
        """Write state.pt: `parts` are state dicts and tensors."""
        content = io.BytesIO()
        torch.save({"format": STATE_FORMAT, "step": step, **parts}, content)
        with atomic_file(self.folder / "state.pt") as path:
            path.write_bytes(content.getbuffer())

    def load_state(self) -> dict[str, Any] | None:
        """Return the last state and drop the log lines after it; None if there is no state.

        Raises:
            CheckpointError: state.pt is not a state of this program.
        """
        path = self.folder / "state.pt"
        if not path.exists():
            self._truncate_log(0)
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many kinds for a damaged file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"checkpoint {path} cannot be read: {reason}") from None
        if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
            raise CheckpointError(f"checkpoint {path} is not a state of this version")
        self._truncate_log(state["step"])
        return state

    def close(self) -> None:
        """Close the log."""
        self._log.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _truncate_log(self, step: int) -> None:
        """Drop the lines of steps after `step`, which a resumed run writes again."""
        path = self.folder / "metrics.jsonl"
        self._log.close()
        kept = [row for row in read_log(path) if row["step"] <= step] if step else []
        with atomic_file(path) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._log = open(path, "a", encoding="utf-8")  # noqa: SIM115


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl; a last line torn by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def save_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write weights as safetensors, atomically."""
    from safetensors.torch import save

    whole = torch.contiguous_format
    # the file cannot say that two names are one tensor, as in the state dict of nnU-Net's encoder
    apart = {k: v.detach().cpu().clone(memory_format=whole) for k, v in weights.items()}
    content = save(apart, dict(metadata))
    with atomic_file(path) as partial:
        partial.write_bytes(content)


def load_weights(path: Path, expected: Mapping[str, str]) -> dict[str, Tensor]:
    """Read safetensors whose metadata must agree with `expected`.

    Raises:
        CheckpointError: Missing, unreadable, or of another architecture.
    """
    weights, metadata = read_weights(path)
    check_metadata(path, metadata, expected)
    return weights


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read safetensors and their metadata.

    Raises:
        CheckpointError: Missing or unreadable.
    """
    from safetensors import SafetensorError, safe_open

    metadata = read_metadata(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from None


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file.

    Raises:
        CheckpointError: Missing or unreadable.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from None


def check_metadata(path: Path, metadata: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Compare the metadata of a checkpoint with what it must be.

    Raises:
        CheckpointError: It is of another architecture.
    """
    for key, value in expected.items():
        if metadata.get(key) != value:
            found = metadata.get(key, "nothing")
            raise CheckpointError(f"checkpoint {path}: {key} must be {value}, got {found}")


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    with contextlib.redirect_stderr(io.StringIO()):
        return SummaryWriter(str(folder / "tensorboard"))
