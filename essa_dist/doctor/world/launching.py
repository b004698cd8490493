"""What the launcher was asked for, beside what came of it."""

from pathlib import Path
from typing import Any

import psutil
import yaml

from essa_dist.errors import UsageError

NUMBERS = ("num_processes", "num_machines")


def asked(config_file: str | None) -> tuple[dict[str, Any], str]:
    """Numbers of processes and nodes that ``accelerate launch`` was told, and by whom.

    Its own words go before those of its config file, as Accelerate itself has it. Empty where neither says any, or
    another launcher was used. Raises UsageError for a file that can't be read.
    """
    words = _launcher_words()
    named = config_file or _option(words, "--config_file")
    told: dict[str, Any] = {}
    if named is not None and (config_file or Path(named).is_file()):
        try:
            read = yaml.safe_load(Path(named).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise UsageError(f"launch={named} can't be read ({error}): give the Accelerate config") from error
        told = {name: read[name] for name in NUMBERS if isinstance(read, dict) and name in read}
    given = {name: value for name in NUMBERS if (value := _option(words, f"--{name}")) is not None}
    return told | given, "the launcher's command" if given else str(named)


def _launcher_words() -> list[str]:
    """The command line of the process that started this one, if that is ``accelerate launch``; else nothing."""
    try:
        parent = psutil.Process().parent()
        words = [] if parent is None else list(parent.cmdline())
    except psutil.Error:
        return []
    at = next((i for i, word in enumerate(words) if "accelerate" in word), None)
    return [] if at is None else words[at:]


def _option(words: list[str], name: str) -> str | None:
    """The value of ``--name value`` or ``--name=value``; Accelerate takes dashes for underscores too."""
    for i, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option.startswith("--") and option[2:].replace("-", "_") == name[2:]:
            return value if equals else next(iter(words[i + 1 : i + 2]), None)
    return None
