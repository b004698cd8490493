"""The Ray Train job of a trial. It doesn't prepare its workers, since each starts its rank as a process of its own."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from essa_dist.tuning.config import TuneConfig
from essa_dist.tuning.worker import RankJob, run_rank


class LaunchedBackend(Backend):
    """Sets up no process group: the ranks do, through Accelerate."""

    share_cuda_visible_devices = True
    """Ranks of a machine see all GPUs of the trial there, and choose by LOCAL_RANK."""


class LaunchedConfig(TorchConfig):
    """TorchTrainer's, without a process group between Ray's own processes."""

    @property
    def backend_cls(self) -> type[Backend]:
        """See :class:`LaunchedBackend`."""
        return LaunchedBackend

    @property
    def train_func_context(self) -> type[AbstractContextManager[None]]:
        """Nothing to end."""
        return nullcontext


def fit(job: RankJob, config: TuneConfig) -> None:
    """Run the ranks of a trial to their end. Raises what Ray Train raises when it has tried often enough."""
    shape = config.job
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(shape.patience_s)
    trainer = TorchTrainer(
        run_rank,
        train_loop_config=dict(job),
        torch_config=LaunchedConfig(),
        scaling_config=ScalingConfig(
            num_workers=shape.workers,
            use_gpu=shape.gpus > 0,
            resources_per_worker={"CPU": shape.cpus} | ({"GPU": shape.gpus} if shape.gpus else {}),
        ),
        run_config=RunConfig(
            name=Path(job["folder"]).name,
            storage_path=str(Path(config.out).resolve() / "ray_train"),
            failure_config=FailureConfig(max_failures=shape.retries, controller_failure_limit=1),
        ),
    )
    trainer.fit()
