"""The ``essa`` command: sort the words, load the settings, call one function, print what it returns.

``python -m essa_dist`` is the same, and so is either under a launcher; then only rank 0 prints a result.
"""

import atexit
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple, NoReturn

from essa_dist import __version__
from essa_dist.cli.failures import Failure, failure
from essa_dist.cli.pages import FLAGS, overview, verb_page
from essa_dist.cli.ranks import among_ranks
from essa_dist.cli.results import to_json, to_text
from essa_dist.cli.streams import lasting_streams, rank, reserved_stdout, set_up_logging
from essa_dist.engine.watching.signals import stop_signals
from essa_dist.errors import Preempted, UsageError
from essa_dist.parent import launched, leave_cause
from essa_dist.verbs import VERBS, config_class, sort_words, verb_of

_SHORT = {"-h": "--help", "-V": "--version"}
_COLLECTIVES = "essa_dist.distributed.collectives"  # not imported here: that would import torch
_BROKEN_PIPE = 141  # as a shell reports SIGPIPE


class Outcome(NamedTuple):
    result: dict[str, Any]
    text: Callable[[], str]
    """The result for a reader, made only if it is wanted; nothing (``str()``) where stderr has said it all."""
    exit_code: int = 0


def run() -> NoReturn:
    """The command as a process of its own.

    A rank ends without the interpreter's tidying up: torch's objects outlive ``leave`` in reference cycles, and with the
    last of them gloo aborted one rank in 90 drills on busy cores ("terminate called without an active exception"), whose
    work was done and whose launcher then reported a failure.
    """
    code = main()
    if launched() and "torch" in sys.modules:
        logging.shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # whoever read it has gone, or it was closed
                stream.flush()
        os._exit(code)
    raise SystemExit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 usage, 75 preempted and resumable, 130 Ctrl-C, 1 else."""
    with lasting_streams():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(words: Sequence[str]) -> int:
    as_json = "--json" in words
    with reserved_stdout() if as_json else nullcontext(sys.stdout) as stdout:
        outcome = _run(words)
        if rank() != 0:
            return outcome.exit_code
        try:
            stdout.write(f"{to_json(outcome.result)}\n" if as_json else outcome.text())
            stdout.flush()
        except OSError as error:
            # What is still buffered must go somewhere when the interpreter closes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
            if isinstance(error, BrokenPipeError):  # the reader has seen enough
                return _BROKEN_PIPE
            return _tell(error).exit_code
    return outcome.exit_code


def _run(words: Sequence[str]) -> Outcome:
    # Before imports and settings, which take seconds in which a run may be stopped like later.
    with stop_signals(until_exit=True) if {"adapt", "finetune"} & set(words) else nullcontext() as signals:
        try:
            outcome = _obey(words)
        except (Exception, KeyboardInterrupt) as error:
            if signals is not None:
                signals.remember()
            found = _tell(error, debug=_wants_debug(words))
            result = {"error": "\n".join(found.lines), "exit_code": found.exit_code}
            outcome = Outcome(result, str, found.exit_code)
        if outcome.exit_code in (0, Preempted.exit_code) and (joined := sys.modules.get(_COLLECTIVES)):
            joined.leave()  # all ranks are here; after an error of one, the others may be waiting inside a collective
    return outcome


def _wants_debug(words: Sequence[str]) -> bool:
    return "--debug" in words or os.environ.get("ESSA_DEBUG", "0") not in ("", "0")


def _obey(words: Sequence[str]) -> Outcome:
    flags, rest = _split_flags(words)
    if "--version" in flags:
        return Outcome({"version": __version__}, lambda: f"essa {__version__}\n")
    if not rest or rest[0] == "help":
        return _page(overview())
    name, settings = verb_of(rest)
    if "--help" in flags:
        return _page(verb_page(name))
    set_up_logging(debug=_wants_debug(words))
    if "--dry-run" in flags:
        settings = [*settings, "dry_run=true"]
    return _call(name, settings)


def _page(text: str) -> Outcome:
    return Outcome({"help": text}, lambda: text)


def _split_flags(words: Sequence[str]) -> tuple[set[str], list[str]]:
    flags = {_SHORT.get(word, word) for word in words if word.startswith("-")}
    for flag in sorted(flags - set(FLAGS)):
        if "=" in flag:
            raise UsageError(f"no flag {flag!r}; settings have no dashes: {flag.lstrip('-')}")
        raise UsageError(f"no flag {flag!r}; flags are {', '.join(FLAGS)}{_did_you_mean(flag, FLAGS)}")
    return flags, [word for word in words if not word.startswith("-")]


def _did_you_mean(word: str, allowed: Sequence[str] | dict[str, Any]) -> str:
    from essa_dist.nearest import nearest

    best = nearest(word, allowed)
    return f"; did you mean {best}?" if best else ""


def _call(name: str, words: list[str]) -> Outcome:
    from essa_dist.settings import load, render

    verb = VERBS[name]
    source, values, overrides = sort_words(verb, words)
    is_look = name == "config"  # at a recipe, which may leave to the user what only the user knows
    settings = load(config_class(verb), source, overrides, values=values, partial=is_look)
    result: dict[str, Any] = getattr(importlib.import_module(verb.module), verb.function)(settings)
    exit_code = result.get("exit_code", 0)  # of a verb that has both something to show and a fault to tell
    return Outcome(result, lambda: render(settings) if is_look else to_text(name, result), exit_code)


def _tell(error: BaseException, *, debug: bool = False) -> Failure:
    """Say on stderr what went wrong, unless another rank says it; what this process ends with."""
    verdict = among_ranks(error, failure(error))
    found = verdict.failure
    leave_cause("\n".join(found.lines), is_first=verdict.is_told)
    if not (verdict.is_told or debug):
        return found
    who = f"essa[rank {rank()}]" if rank() else "essa"
    kind = "internal error" if found.is_ours else "error"
    for line in found.lines:
        sys.stderr.write(f"{who}: {kind}: {line}\n")
    if debug:
        traceback.print_exception(error)
    elif found.is_ours:
        sys.stderr.write(f"{who}: run it again with --debug for the traceback\n")
    return found
