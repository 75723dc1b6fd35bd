"""The command line: ``spcl-fast COMMAND``. Results on stdout, messages on stderr.

Exit code 0 done, 1 failed, 2 bad usage or bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from spcl_fast.segmentation.data.layouts import LayoutName

COMMANDS = {
    "demo": "phantom, pre-training, fine-tuning and a report, in minutes on a CPU",
    "pretrain": "pre-train the encoder on meta-labels",
    "finetune": "train the segmenter on a few labelled scans and evaluate it",
    "reproduce": "run the paper's comparison and set its table beside ours",
    "audit": "give a share of slices wrong meta-labels; do the pair weights find them?",
    "evaluate": "Dice and HD95 of a trained segmenter on a data set",
    "predict": "segment images with a trained segmenter",
    "export": "write the encoder for MONAI or nnU-Net, or the segmenter as a program",
    "report": "write one HTML page about the runs in a folder",
    "data": "inspect a data set, or make the phantom",
    "bench": "time and memory of the losses here, against dense PyTorch and other libraries",
    "info": "versions, what is built, what auto picks",
}


@dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page about the runs in a folder.

    Attributes:
        runs: Folder that holds run folders.
        output: The page; None means report.html in `runs`.
    """

    runs: Path
    output: Path | None = None


@dataclass(frozen=True)
class InspectConfig:
    """Show what a data set holds and what is wrong with it.

    Attributes:
        root: Folder in one of the layouts; the word --root may be left out.
        csv: Table of more meta-labels.
        layout: Layout of the folder; "auto" recognises it.
        thumbnails: PNG file to draw some of the scans to.
        json: Print JSON instead of text.
    """

    root: Path
    csv: Path | None = None
    layout: LayoutName = "auto"
    thumbnails: Path | None = None
    json: bool = False


@dataclass(frozen=True)
class MakePhantomConfig:
    """Write an anatomical short-axis phantom in the layout of a public data set.

    Attributes:
        root: Folder to write to.
        layout: Data set whose files it looks like.
        num_patients: Patients; where the layout has no phases, each has its ED volume only.
        seed: Seed of the data set.
    """

    root: Path
    layout: Literal["acdc", "promise12", "mmwhs", "msd", "nnunet", "mnms", "ssl4mis"] = "acdc"
    num_patients: int = 24
    seed: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    if args in (["--version"], ["-V"]):
        from spcl_fast._version import __version__

        print(__version__)  # noqa: T201
        return 0
    if not args or args[0] not in COMMANDS:
        usage = "usage: spcl-fast COMMAND [options], with COMMAND one of\n"
        usage += "".join(f"  {name:10} {text}\n" for name, text in COMMANDS.items())
        asked = args[:1] in (["--help"], ["-h"])
        problem = f"spcl-fast: unknown command {args[0]!r}\n" if args and not asked else ""
        print(problem + usage, end="", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        return _run(args[0], args[1:])
    except ValueError as error:  # DataError, ConfigError, CheckpointError are ValueErrors
        print(f"spcl-fast {args[0]}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except OSError as error:
        print(f"spcl-fast {args[0]}: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        return 1
    except ArithmeticError as error:
        print(f"spcl-fast {args[0]}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print(f"spcl-fast {args[0]}: interrupted", file=sys.stderr)  # noqa: T201
        return 130


def _run(command: str, args: list[str]) -> int:
    if command == "pretrain":
        from spcl_fast.segmentation.pretrain.config import PretrainConfig
        from spcl_fast.segmentation.pretrain.loop import pretrain

        config, resume = _stage(PretrainConfig, command, args)
        return _print(str(pretrain(config, resume=resume)))
    if command == "finetune":
        from spcl_fast.segmentation.finetune.config import FinetuneConfig
        from spcl_fast.segmentation.finetune.loop import finetune

        config, resume = _stage(FinetuneConfig, command, args)
        finetune(config, resume=resume)
        return _print(str(config.out / "evaluation.json"))
    if command == "demo":
        from spcl_fast.segmentation.commands.demo import DemoConfig, demo

        return _print(str(demo(_parse(DemoConfig, command, args))))
    if command == "reproduce":
        from spcl_fast.segmentation.commands.reproduce import ReproduceConfig, reproduce

        if args and not args[0].startswith("-"):
            args = ["--dataset", *args]  # spcl-fast reproduce acdc ...
        return _print(str(reproduce(_parse(ReproduceConfig, command, args))))
    if command == "audit":
        from spcl_fast.segmentation.commands.audit import AuditConfig, audit

        return _print(str(audit(_parse(AuditConfig, command, args))))
    if command == "evaluate":
        from spcl_fast.segmentation.commands.evaluate import EvaluateConfig, evaluate

        return _print(json.dumps(evaluate(_parse(EvaluateConfig, command, args)), indent=1))
    if command == "predict":
        from spcl_fast.segmentation.commands.predict import PredictConfig, predict

        return _print("\n".join(map(str, predict(_parse(PredictConfig, command, args)))))
    if command == "export":
        from spcl_fast.segmentation.commands.export import ExportConfig, export

        return _print(str(export(_parse(ExportConfig, command, args))))
    if command == "report":
        from spcl_fast.segmentation.report import write_report

        config = _parse(ReportConfig, command, args)
        return _print(str(write_report(config.runs, config.output or config.runs / "report.html")))
    if command == "data":
        return _data(args)
    if command == "bench":
        return _bench(args)
    from spcl_fast.info import main as info

    info()
    return 0


def _data(args: list[str]) -> int:
    if args[:1] == ["inspect"]:
        from spcl_fast.segmentation.data.inspect import inspect, render

        is_folder = args[1:] and not args[1].startswith("-")
        options = ["--root", *args[1:]] if is_folder else args[1:]
        config = _parse(InspectConfig, "data inspect", options)
        found = inspect(config.root, config.csv, layout=config.layout)
        if config.thumbnails is not None and found.readable:
            from spcl_fast.segmentation.report.thumbnails import write_thumbnails

            write_thumbnails(config.thumbnails, found.readable)
        _print(json.dumps(found.facts(), indent=1) if config.json else "\n".join(render(found)))
        return 2 if found.problems else 0
    if args[:1] == ["make-phantom"]:
        from spcl_fast.segmentation.phantom import PhantomConfig, write_phantom
        from spcl_fast.segmentation.runs.progress import progress_bar

        made = _parse(MakePhantomConfig, "data make-phantom", args[1:])
        config = replace(PhantomConfig(), num_patients=made.num_patients, seed=made.seed)
        with progress_bar("phantom", config.num_patients) as show:
            root = write_phantom(
                config, made.root, made.layout, progress=lambda done, _: show(done, "")
            )
        return _print(str(root))
    raise ValueError("data must be followed by inspect or make-phantom")


def _bench(args: list[str]) -> int:
    root = Path(__file__).resolve().parents[1]
    if not (root / "benchmarks" / "__main__.py").exists():
        raise ValueError("bench must run from a clone of the repository, which has benchmarks/")
    sys.path.insert(0, str(root))
    from benchmarks.__main__ import main as bench

    return bench(args)


def _stage(cls: Any, stage: str, args: list[str]) -> tuple[Any, bool]:
    """Return a stage's configuration: defaults <- --preset or --config <- the other flags."""
    from spcl_fast.segmentation.runs.config import (
        ConfigError,
        preset_names,
        preset_path,
        stage_config,
    )

    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", type=Path)
    files.add_argument("--preset")
    files.add_argument("--resume", action="store_true")
    chosen, rest = files.parse_known_args(args)
    if chosen.config and chosen.preset:
        raise ConfigError("give --config or --preset, not both")
    file = preset_path(chosen.preset) if chosen.preset else chosen.config
    default = stage_config(cls, stage, file) if file else cls()
    more = f"Also: --preset {{{','.join(preset_names())}}}, --config FILE.yaml, --resume."
    return _parse(cls, stage, rest, default, more), chosen.resume


def _parse(cls: Any, command: str, args: list[str], default: Any = None, more: str = "") -> Any:
    import tyro

    text = f"{(cls.__doc__ or '').splitlines()[0]} {more}".strip()
    extra = {} if default is None else {"default": default}
    return tyro.cli(cls, prog=f"spcl-fast {command}", description=text, args=args, **extra)


def _print(text: str) -> int:
    print(text)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
