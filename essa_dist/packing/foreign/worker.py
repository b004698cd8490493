"""The program of a process that scans tars: their names come in by lines of JSON, their scans go out so."""

import json
import signal
import sys

from essa_dist.packing.foreign.config import IndexConfig
from essa_dist.packing.foreign.scan import scan


def main() -> None:
    """Answer until the input ends, as it does when the main process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the main process ends the others
    config = IndexConfig.model_validate_json(sys.argv[1])
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing else may write between the answers
    for line in sys.stdin.buffer:
        answers.write(json.dumps(scan(json.loads(line), config).as_json()).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
