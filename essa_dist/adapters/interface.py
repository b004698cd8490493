"""What every adapter offers."""

from fnmatch import fnmatchcase
from typing import ClassVar, Protocol

from essa_dist.backbones.vit import Backbone


class Adapter(Protocol):
    """Contract: before training a no-op; only trained tensors move; ``merge`` keeps the features.

    Teachers are not an adapter's business: ``Branches`` gives every trained tensor a second setting.
    """

    merges: ClassVar[bool]
    """Whether ``merge`` gives back a plain timm model; otherwise the model is exported with the adapter's modules."""
    starts_exact: ClassVar[bool]
    """Whether the model before training is the base model bit for bit."""
    yields: ClassVar[bool]
    """In a combination: injected last, and leaves alone what the others train."""

    @property
    def silent(self) -> tuple[str, ...]:
        """Patterns of trained tensors whose gradient is zero in the first step, for they stand behind a zero."""
        ...

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        """Change the frozen ``backbone`` in place and make exactly the trained tensors require gradients.

        Random choices come from ``seed`` alone. Tensors that require gradients already are another adapter's.
        Raises UsageError for settings that don't fit the backbone.
        """
        ...

    def merge(self, backbone: Backbone) -> None:
        """Fold the trained tensors back, in place: afterwards ``backbone.vit`` is a plain timm module tree.

        Parameters that change are replaced, never written to: another model may share them. Does nothing where
        ``merges`` is false. Freezing is left to the caller.
        """
        ...


def silent_at_start(adapter: Adapter, name: str) -> bool:
    """Whether the trained tensor ``name`` has a gradient of zero in the first step, by construction."""
    return any(fnmatchcase(name, pattern) for pattern in adapter.silent)
