"""``essa`` that dwells at one place, so that what befalls it finds it there. Started by tests, one process a rank.

usage: python tests/faults/dwelling.py PLACE SECONDS FOLDER WORD...

Whoever gets to PLACE leaves a file in FOLDER, named by its rank, and stays for SECONDS; the words are those of the
``essa`` command.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from essa_dist.cli import main

PLACES = {
    "settings": ("essa_dist.settings", "load", 1),
    "weights": ("essa_dist.engine.adapt", "build_backbone", 1),
    "standardization": ("essa_dist.engine.adapt", "standardize_heads", 1),
    "first batch": ("essa_dist.data.loader:CropLoader", "batches", 1),
    "step": ("essa_dist.objectives:DINOv2Objective", "forward", 3),
    "evaluation": ("essa_dist.engine.recording.canary:Canary", "look", 2),
    "first save": ("essa_dist.engine.saving.checkpoint", "write", 1),
    "save": ("essa_dist.engine.saving.checkpoint", "write", 2),
}
"""Where the function is that is entered there, and at which call."""


def dwell(place: str, seconds: float, folder: Path) -> None:
    where, name, call = PLACES[place]
    module, _, owner_name = where.partition(":")
    owner: Any = __import__(module, fromlist=["*"])
    owner = getattr(owner, owner_name) if owner_name else owner
    before: Callable[..., Any] = getattr(owner, name)
    calls: list[int] = []

    def stay() -> None:
        calls.append(1)
        if len(calls) == call:
            (folder / os.environ.get("RANK", "0")).write_text("")
            time.sleep(seconds)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        stay()
        return before(*args, **kwargs)

    def batches(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for batch in before(*args, **kwargs):
            stay()
            yield batch

    setattr(owner, name, batches if name == "batches" else replaced)


if __name__ == "__main__":
    place, seconds, folder, *words = sys.argv[1:]
    dwell(place, float(seconds), Path(folder))
    raise SystemExit(main(words))
