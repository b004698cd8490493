"""The comparisons. One file each; ``GRIDS`` lists them all."""

from essa_dist.reproduce.cells import Grid
from essa_dist.reproduce.grids.essa import ESSA
from essa_dist.reproduce.grids.medpeft import MEDPEFT
from essa_dist.reproduce.grids.small import SMALL

GRIDS: dict[str, Grid] = {"medpeft": MEDPEFT, "essa": ESSA, "small": SMALL}

__all__ = ["GRIDS"]
