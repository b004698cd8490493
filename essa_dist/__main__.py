"""``python -m essa_dist VERB ...``: the ``essa`` command, for launchers."""

from essa_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
