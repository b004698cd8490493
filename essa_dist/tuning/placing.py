"""How Ray Train prepares the workers of a trial: not at all, since each starts its rank as a process of its own."""

from contextlib import AbstractContextManager, nullcontext

from ray.train.backend import Backend
from ray.train.torch import TorchConfig


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
