"""What ``essa tune`` can be told; most of it stands in a file of ``tune/spaces/``."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from essa_dist.settings import Config
from essa_dist.settings.words import Words
from essa_dist.tuning.record import Objective
from essa_dist.tuning.space import Parameter, Space

CHECKED = 64
"""Draws of a space that are made to see whether it contradicts itself; below 1 ms each."""
Share = Annotated[float, Field(gt=0, le=1)]


class RandomSearch(Config):
    kind: Literal["random"] = "random"
    """Independent draws."""
    trials: int = Field(16, ge=1)
    """How many."""


class GridSearch(Config):
    kind: Literal["grid"] = "grid"
    """Every combination."""


class OptunaSearch(Config):
    kind: Literal["optuna"] = "optuna"
    """Optuna's tree-structured Parzen estimator: draws near what was good so far (arXiv:1907.10902)."""
    trials: int = Field(16, ge=1)
    """How many."""
    startup: int = Field(8, ge=1)
    """The first so many are independent draws."""


class NoScheduler(Config):
    kind: Literal["none"] = "none"
    """Every trial runs to its end."""


class ASHA(Config):
    kind: Literal["asha"] = "asha"
    """Asynchronous successive halving (arXiv:1810.05934): at each rung only the best part goes on."""
    grace: Share = 0.2
    """Share of a run after which the first trials are stopped."""
    reduction: float = Field(3, gt=1)
    """One of so many goes on at a rung; rungs are at grace, grace * reduction, grace * reduction^2 ..."""


class PBT(Config):
    kind: Literal["pbt"] = "pbt"
    """Population based training (arXiv:1711.09846): the worst go on from the weights of the best, with changed settings."""
    interval: Share = 0.2
    """Share of a run between two decisions."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """Share of the trials that is replaced, and share that is copied."""
    mutate: tuple[str, ...] = ("optim.lr",)
    """Parameters of the space that change on the way; such that don't change what a checkpoint holds."""
    resample: float = Field(0.25, ge=0, le=1)
    """Probability of a new draw in place of a factor of 1.2 or 0.8."""


class JobShape(Config):
    """What each trial gets of the cluster."""

    workers: int = Field(1, ge=1)
    """Processes of a trial: its ranks."""
    cpus: float = Field(1, gt=0)
    """CPUs of each."""
    gpus: float = Field(0, ge=0)
    """GPUs of each; 0.5 lets two trials share one."""
    launch: str = ""
    """How the ranks share the work, as launch/zero2.yaml (empty: DDP, or one process)."""
    retries: int = Field(2, ge=0)
    """How often a trial goes on from its checkpoint after a process or a machine of it was lost."""
    patience_s: float = Field(600, gt=0)
    """How long a trial may wait for its processes to be placed, when the cluster has shrunk."""


class TuneConfig(Config):
    """A sweep over the settings of ``essa adapt`` or ``essa finetune``. Needs `base`, `out` and a `space`."""

    base: str
    """The YAML file of the run that is varied; words that are no setting of the sweep are settings of that run."""
    out: str
    """Folder of the sweep: its trials, its report, and what resume=true goes on from. Several machines: on a file system
    that all of them share."""
    verb: Literal["adapt", "finetune"] = "adapt"
    """What a trial runs."""
    space: dict[str, Parameter]
    """Settings of the run and what is tried of each."""
    objectives: dict[str, Literal["max", "min"]] = Field(default={"canary_knn": "max"})
    """Numbers of the run's metrics.jsonl: the first decides; with search.kind=optuna all are sought. As canary_knn,
    canary_linear, val_balanced_accuracy (max), peak_memory_gib, step_s (min)."""
    search: RandomSearch | GridSearch | OptunaSearch = RandomSearch()
    """Which trials."""
    scheduler: NoScheduler | ASHA | PBT = NoScheduler()
    """Which of them go on."""
    job: JobShape = JobShape()
    """The shape of a trial."""
    seed: int = Field(0, ge=0)
    """Of the draws."""
    concurrent: int | None = Field(None, ge=1)
    """Trials at a time (null: as many as fit the cluster)."""
    address: str = "local"
    """local: a cluster of this machine alone, which ends with the sweep; auto: the one this machine is part of; or an address."""
    cpus: int | None = Field(None, ge=1)
    """address=local: CPUs to give out (null: the machine's)."""
    shared: str = "auto"
    """Folder on each machine in which its trials share decoded images and frozen weights (auto: in the machine's
    temporary folder, deleted at the end; empty: each process has its own)."""
    price: float | None = Field(None, gt=0)
    """What an hour of one worker costs, for the estimate."""
    tflops: float = Field(0.03, gt=0)
    """Sustained TFLOP/s of a worker, for the estimate: 0.03 is a CPU core, 100 to 300 an A100 or H100."""
    resume: bool = False
    """Go on with the sweep in out: finished trials stay, interrupted ones go on from their checkpoints."""
    overwrite: bool = False
    """Delete what is in out first."""
    dry_run: bool = False
    """Print what would be tried and what it costs, and run nothing; `--dry-run` says the same."""
    settings: Words = ()
    """Settings of the run that all trials have, as key=value; on the command line simply more words."""

    @model_validator(mode="after")
    def _consistent(self) -> "TuneConfig":
        if not self.space:
            raise ValueError("the space is empty: name at least one setting to try values of")
        if not self.objectives:
            raise ValueError("no objective: name a number of metrics.jsonl, as canary_knn: max")
        space = Space(self.space)  # raises ValueError, and so do draws that contradict themselves
        for number in range(CHECKED):
            space.sample(self.seed, number)
        if self.resume and self.overwrite:
            raise ValueError("resume=true and overwrite=true contradict each other: choose one")
        if isinstance(self.scheduler, PBT):
            self._check_pbt(self.scheduler, space)
        return self

    def _check_pbt(self, scheduler: PBT, space: Space) -> None:
        if not isinstance(self.search, RandomSearch):
            raise ValueError("scheduler.kind=pbt draws by itself: it goes with search.kind=random only")
        for name in scheduler.mutate:
            parameter = space.parameters.get(name)
            if parameter is None:
                raise ValueError(f"scheduler.mutate names {name}, which is not in the space")
            if name.startswith(("adapter.", "backbone.", "data.", "objective.head")) or parameter.when:
                raise ValueError(
                    f"scheduler.mutate names {name}, which would change what a checkpoint holds, or is there in some trials only: "
                    "leave it to the first draw"
                )

    def goals(self) -> tuple[Objective, ...]:
        """The objectives, the first first."""
        return tuple(Objective(name, mode) for name, mode in self.objectives.items())
