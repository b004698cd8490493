"""``python -m essa_dist VERB ...``: the ``essa`` command, for launchers."""

from essa_dist.cli import run

if __name__ == "__main__":
    run()
