"""The `regrpo` command: one subcommand a module of regrpo.commands, loaded when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from regrpo.core.errors import CannotCheck, RegrpoError, system_refusal
from regrpo.core.text import shown_output

COMMANDS = {
    "check": "the whole profile, the environment and free disk, before anything runs",
    "plan": "whether a profile will train and fit on a GPU, before a second of it is spent",
    "sync": "bring MLflow up to date with the files (idempotent)",
    "report": "one page about a run, reports/index.html: "
    "states, gate, curves, evaluation, samples, lineage",
    "compare": "what differs between runs, and whether they differ by more than chance",
    "promote": "register a run's model in MLflow; "
    "champion only if audit, doctor and paired test allow it",
    "release": "a run's model, card and provenance as a folder to hand on, signed with a key",
    "verify": "whether a released folder is whole: hashes, signature, numbers",
    "publish": "a released folder, verified, as one commit on the Hugging Face hub (or a dry run)",
    "audit": "whether a run is what its records say, to the byte",
    "lineage": "which run made what from what, upstream or downstream",
    "reproduce": "make a run again in a temporary worktree, and say whether the same came out",
}


def parser_for(command: str | None) -> argparse.ArgumentParser:
    """The parser, with the arguments of `command` only: the others' modules stay unloaded."""
    parser = argparse.ArgumentParser(
        prog="regrpo",
        description="Reproducible GRPO fine-tuning: before a run, after it, and months later.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_text, description=help_text)
        if name == command:
            module = importlib.import_module(f"regrpo.commands.{name}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is the command's own, or the error's."""
    with shown_output():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(arguments: list[str]) -> int:
    command = next((word for word in arguments if not word.startswith("-")), None)
    try:
        parsed = parser_for(command).parse_args(arguments)
        code = int(parsed.run(parsed))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads, as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except RegrpoError as error:
        return _print_error(command, error)
    except Exception as error:
        refusal = system_refusal(error)
        if refusal is not None:
            return _print_error(command, refusal)
        # A fault of ours: Python would print it past `shown_output`, and say 1.
        traceback.print_exc()
        return CannotCheck.exit_code


def _print_error(command: str | None, error: RegrpoError) -> int:
    """Print an error as one line; returns its exit code."""
    print(f"regrpo {command}: {error}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
