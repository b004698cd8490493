"""What ``essa plan`` can be told."""

from typing import Literal

from pydantic import Field

from essa_dist.settings import Config
from essa_dist.settings.words import Several


class PlanConfig(Config):
    """Words that are not named here are those of `essa adapt` or `essa finetune`: its config file and settings. Needs no GPU
    and no data."""

    run: tuple[str, ...] = ()
    """The words of the run, given as they are."""
    verb: Literal["auto", "adapt", "finetune"] = "auto"
    """Whose words they are; auto: of `essa finetune` if one of them, or a key of the file, is a setting that it alone has
    (model, keep_adapter, task, head, decoder, mixing, validation, test)."""
    classes: int | None = Field(None, ge=1)
    """Of the labels of an `essa finetune`, with a mask's background (null: as `data.train` says, where it is there)."""
    devices: Several[str] = ()
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
    """Images of the training set, for the hours of a duration in epochs; of labelled ones `data.fraction` or `data.shots` is
    taken (null: as `data.train` says, where it is there)."""
    price: float | None = Field(None, ge=0)
    """What one device costs an hour, in any currency (null: the table's, which are assumptions)."""
    picture: str = ""
    """A PNG file for the memory over one step, on the first of `devices`."""
