"""The commands of ``spcl-fast``: name, help, options and function, imported when a command runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

PACKAGE = "spcl_fast.segmentation"


class Command(NamedTuple):
    """A command with options; its class and its function are "module:name" below `PACKAGE`."""

    help: str
    config: str
    """Dataclass of the options."""
    function: str
    """Takes the configuration and does the work."""
    text: Callable[[Any, Any], Any] = lambda config, result: result
    """Returns what to print, from the configuration and the result."""
    exit_code: Callable[[Any], int] = lambda result: 0
    """Returns the exit code, from the result."""
    is_stage: bool = False
    """Whether it also takes --preset, --config and --resume."""
    on_ranks: bool = False
    """Whether the processes of torchrun run it together."""
    first_option: str | None = None
    """Option whose name may be omitted if its value is the first word."""


class Program(NamedTuple):
    """A command that parses its own arguments."""

    help: str
    function: str
    """Takes the arguments, returns the exit code."""


class CommandGroup(NamedTuple):
    """Commands of two words."""

    help: str
    commands: dict[str, Command]


DATA = {
    "inspect": Command(
        "show what a data set holds and what is wrong with it",
        *("commands.inspect_data:InspectConfig", "commands.inspect_data:inspect_data"),
        text=lambda _, found: found.text,
        exit_code=lambda found: 2 if found.problems else 0,
        first_option="--root",
    ),
    "make-phantom": Command(
        "write the phantom in the layout of a public data set",
        *("commands.make_phantom:MakePhantomConfig", "commands.make_phantom:make_phantom"),
    ),
}
COMMANDS: dict[str, Command | Program | CommandGroup] = {
    "demo": Command(
        "pre-train and fine-tune on a phantom, with a report, in minutes on a CPU",
        *("commands.demo:DemoConfig", "commands.demo:demo"),
    ),
    "pretrain": Command(
        "pre-train the encoder on meta-labels",
        *("pretrain.config:PretrainConfig", "pretrain.loop:pretrain"),
        is_stage=True,
        on_ranks=True,
    ),
    "finetune": Command(
        "train the segmenter on a few labelled scans and evaluate it",
        *("finetune.config:FinetuneConfig", "finetune.loop:finetune"),
        text=lambda config, found: (
            config.out / ("evaluation.json" if found.scans else "segmenter.safetensors")
        ),
        is_stage=True,
        on_ranks=True,
    ),
    "reproduce": Command(
        "run the paper's comparison and show its numbers beside ours",
        *("commands.comparison:ReproduceConfig", "commands.reproduce:reproduce"),
        on_ranks=True,
        first_option="--dataset",
    ),
    "audit": Command(
        "corrupt some meta-labels and test whether the pair weights find them",
        *("commands.audit:AuditConfig", "commands.audit:audit"),
        on_ranks=True,
    ),
    "evaluate": Command(
        "compute Dice and HD95 of a trained segmenter on a data set",
        *("commands.evaluate:EvaluateConfig", "commands.evaluate:evaluate"),
        text=lambda config, scores: (
            json.dumps(scores.to_json(), indent=1)
            if config.json
            else load("evaluate.case_table:summary_table")(scores)
        ),
    ),
    "predict": Command(
        "segment images with a trained segmenter",
        *("commands.predict:PredictConfig", "commands.predict:predict"),
        text=lambda _, files: "\n".join(map(str, files)),
    ),
    "export": Command(
        "write the encoder for MONAI or nnU-Net, or the segmenter as a program",
        *("commands.export:ExportConfig", "commands.export:export"),
    ),
    "report": Command(
        "write an HTML page about the runs in a folder",
        *("commands.report:ReportConfig", "commands.report:report"),
    ),
    "data": CommandGroup("inspect a data set, or generate the phantom", DATA),
    "bench": Program(
        "measure time and memory against dense PyTorch and other libraries",
        "commands.bench:bench",
    ),
    "info": Program("print versions, what is built and what auto picks", "commands.info:info"),
}


def load(name: str) -> Any:
    """Return the object named "module:name" below `PACKAGE`."""
    module, attribute = name.split(":")
    return getattr(import_module(f"{PACKAGE}.{module}"), attribute)
