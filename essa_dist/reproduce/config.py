"""What ``essa reproduce`` can be told."""

from typing import Annotated, Literal

from pydantic import Field

from essa_dist.settings import Config
from essa_dist.settings.words import Several, Words

GridName = Literal["medpeft", "essa", "small"]


class ReproduceConfig(Config):
    """Which comparison, on which images, and how it is run. Needs `grid`, `data_root` and `out`."""

    grid: GridName
    """medpeft: LoRA against full fine-tuning on chest X-rays (arXiv 2401.12215); essa: supervised adaptation on top of
    self-supervised adaptation, each with every adapter (arXiv 2503.18873); small: both in small, on real images."""
    data_root: str
    """Folder of the packed data sets, each under its name; the plan says which are missing and how to pack them. Of small:
    the raw images, which it packs into `out` itself."""
    out: str
    """Folder of the table, the runs and the finished cells: called again, it does what is missing."""
    dry_run: bool = False
    """Print the plan, its commands and estimates, and run nothing; `--dry-run` says the same."""
    only: str = ""
    """Cells by name, with * for anything, as `nih/*/f1/*,rsna/*`; what they start from is run too. Empty: all."""
    seeds: Several[Annotated[int, Field(ge=0)]] = ()
    """Each cell once for each of them; empty: the grid's own (0, as in the papers' code; of small 0,1,2). A seed draws the
    heads, the order of images, the augmentations, and of small the labels that are used."""
    ssa_seeds: Literal["first", "each"] | None = None
    """Whether supervised runs of all seeds start from one self-supervised run, or each from its own; null: the grid's
    own (essa: first, as it is the costly part; small: each)."""
    weights: dict[str, str] = Field(default={})
    """Files of pretrained weights that can't be fetched, as `weights.mrm=MRM.pth`; the plan names what is needed."""
    settings: Words = ()
    """More settings of every cell, as `settings='precision=bf16,optim.betas=[0.9,0.95]'`; they are then no longer the
    paper's."""
    launch: str = ""
    """What starts a cell in place of this Python, for several GPUs, as `torchrun --standalone --nproc_per_node 4`."""
    jobs: int = Field(default=1, ge=1)
    """Cells that run at the same time."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of finished supervised runs too; scores and predictions are always kept."""
    tflops: float | None = Field(default=None, gt=0)
    """Sustained TFLOP/s of one device, for estimates until cells have been measured (null: the grid's own; see the plan)."""
