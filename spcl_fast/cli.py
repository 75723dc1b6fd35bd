"""The command line: ``spcl-fast COMMAND``. Results on stdout, messages on stderr.

Exit code 0 done, 1 failed, 2 bad usage or bad input, 130 interrupted. Under torchrun
(``torchrun ... -m spcl_fast COMMAND``) the processes train together, and what happens to all of
them is said once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

from spcl_fast._version import __version__
from spcl_fast.segmentation.commands.table import COMMANDS, Command, CommandGroup, Program, load
from spcl_fast.segmentation.runs.launch import Launch, is_lost_rank


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    if args in (["--version"], ["-V"]):
        return _print(__version__)
    if not args or args[0] not in COMMANDS:
        return _usage(args)
    name, *words = args
    launch = Launch()
    try:
        return _run(name, words, launch)
    except ValueError as error:  # DataError, ConfigError, CheckpointError are ValueErrors
        return _fail(name, error, 2, launch)
    except OSError as error:
        return _fail(name, _reason(error), 1, launch)
    except ArithmeticError as error:
        return _fail(name, error, 1, launch)
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        return _fail(name, "another process was lost; --resume continues the run", 1, launch)
    except KeyboardInterrupt as stop:
        how = f"; continue with {stop}" if stop.args else ""
        return _fail(name, f"interrupted{how}", 130, launch)


def _usage(args: Sequence[str]) -> int:
    usage = "usage: spcl-fast COMMAND [options], with COMMAND one of\n"
    usage += "".join(f"  {name:10} {entry.help}\n" for name, entry in COMMANDS.items())
    is_asked_for = args[:1] in (["--help"], ["-h"])
    problem = f"spcl-fast: unknown command {args[0]!r}\n" if args and not is_asked_for else ""
    print(problem + usage, end="", file=sys.stdout if is_asked_for else sys.stderr)
    return 0 if is_asked_for else 2


def _run(name: str, words: list[str], launch: Launch) -> int:
    entry = COMMANDS[name]
    if launch.world > 1 and not (isinstance(entry, Command) and entry.on_ranks):
        raise ValueError(f"{name} must run in one process, got {launch.world}")
    if isinstance(entry, Program):
        code: int = load(entry.function)(words)
        return code
    if isinstance(entry, Command):
        return _run_command(name, entry, words, launch)
    return _run_member(name, entry, words, launch)


def _run_member(name: str, group: CommandGroup, words: list[str], launch: Launch) -> int:
    if not words or words[0] not in group.commands:
        raise ValueError(f"{name} must be followed by {' or '.join(group.commands)}")
    return _run_command(f"{name} {words[0]}", group.commands[words[0]], words[1:], launch)


def _run_command(name: str, command: Command, words: list[str], launch: Launch) -> int:
    from spcl_fast.segmentation.commands.options import parse, parse_stage
    from spcl_fast.segmentation.runs.resume import telling_how_to_resume

    if command.first_option and words and not words[0].startswith("-"):
        words = [command.first_option, *words]
    if command.is_stage:
        with _one_voice(launch):
            config, resume = parse_stage(load(command.config), name, words)
        with launch.joined(), telling_how_to_resume(name, config.out):
            result = load(command.function)(config, resume=resume)
    else:
        with _one_voice(launch):
            config = parse(load(command.config), name, words)
        with launch.joined():
            result = load(command.function)(config)
    if launch.rank == 0:
        _print(command.text(config, result))
    return command.exit_code(result)


@contextlib.contextmanager
def _one_voice(launch: Launch) -> Iterator[None]:
    """Let the first rank alone speak."""
    if launch.rank == 0:
        yield
        return
    silent = (contextlib.redirect_stderr, contextlib.redirect_stdout)
    with open(os.devnull, "w") as nowhere, silent[0](nowhere), silent[1](nowhere):
        yield


def _reason(error: OSError) -> object:
    reason = error.strerror or error
    return reason if error.filename is None else f"{error.filename} could not be used: {reason}"


def _print(text: object) -> int:
    print(text)  # noqa: T201
    return 0


def _fail(name: str, problem: object, code: int, launch: Launch) -> int:
    if launch.is_first_to_say(str(problem)):
        rank = f"rank {launch.rank}: " if launch.rank else ""
        print(f"spcl-fast {name}: {rank}{problem}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main())
