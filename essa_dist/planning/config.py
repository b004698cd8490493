"""What ``essa plan`` can be told."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from essa_dist.settings import Config


def several(value: Any) -> Any:
    """``a,b`` as a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(several)]


class PlanConfig(Config):
    """Words that are not named here are those of `essa adapt`: its config file and settings. Needs no GPU and no data."""

    run: tuple[str, ...] = ()
    """The words of an `essa adapt`, given as they are."""
    devices: Names = ()
    """What to run on, as `h100,8xa100`: devices of the table, with the number of ranks in front (none named: each GPU of the
    table alone). Names: a100, h100, h200, l4, l40s, rtx4090, rtx5090, mi300x, cpu."""
    ranks: int = Field(8, ge=2)
    """How many ranks the strategies are compared on."""
    table: str = ""
    """A YAML file of devices and interconnects of your own, in the form of essa_dist/planning/devices.yaml; it adds to it."""
    interconnect: str = "infiniband_ndr"
    """What joins machines: infiniband_ndr, infiniband_hdr, ethernet_100g, ethernet_25g, ethernet_10g, or one of `table`."""
    per_machine: int = Field(8, ge=1)
    """Devices of one machine, which are joined by the link of the device itself."""
    images: int | None = Field(None, ge=1)
    """Images of the training set, for the hours of a duration in epochs (null: as `data.train` says, where it is there)."""
    price: float | None = Field(None, ge=0)
    """What one device costs an hour, in any currency (null: the table's, which are assumptions)."""
    picture: str = ""
    """A PNG file for the memory over one step, on the first of `devices`."""
