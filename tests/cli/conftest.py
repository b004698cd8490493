"""The command with one verb of its own, ``try``, that does whatever a test asks for."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

VERB = '''
import ctypes, errno, logging, os, sys
from pathlib import Path
from typing import Literal
import numpy as np
from essa_dist.errors import DataError, Preempted
from essa_dist.settings import Config

class TryConfig(Config):
    do: str = "well"
    """What to do."""
    n: int = 1
    """A number."""

def noise():
    print("a stray print")
    sys.stdout.flush()
    ctypes.CDLL(None).puts(b"a C library's puts")
    ctypes.CDLL(None).fflush(None)
    os.system("echo a child")
    logging.getLogger("essa_dist.x").info("news")
    logging.getLogger("essa_dist.x").warning("trouble")
    logging.getLogger("other").info("chatter")

def run(config):
    noise()
    match config.do:
        case "data": raise DataError("no images in x; give a folder with images")
        case "preempted": raise Preempted("stopped; go on with resume=true")
        case "interrupt": raise KeyboardInterrupt
        case "full": raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/run")
        case "locked": raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/run")
        case "memory": raise MemoryError
        case "bug": raise KeyError("thing")
        case "much": return {"text": "x" * 10**6}
    return {"path": Path("a") / "b", "nan": float("nan"), "inf": np.float32("inf"), "array": np.arange(3), "n": config.n}
'''
START = """
import sys
from essa_dist.cli import main
from essa_dist.verbs import VERBS, Verb
VERBS["try"] = Verb("tryverb", "run", "tryverb:TryConfig", "try")
raise SystemExit(main())
"""
Essa = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def essa(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Essa:
    """Runs the command as a user would, with environment variables as keywords."""
    folder = tmp_path_factory.mktemp("verb")
    (folder / "tryverb.py").write_text(VERB)
    clean = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "ESSA_DEBUG")
    }

    def run(*words: str, cwd: Path = repository, **environment: str) -> subprocess.CompletedProcess[str]:
        paths = {"PYTHONPATH": f"{folder}:{repository}"}
        command = [sys.executable, "-c", START, *words]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, env=clean | paths | environment
        )

    return run
