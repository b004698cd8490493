"""Several adapters over one trunk: ``apla+bitfit``."""

from collections.abc import Sequence
from typing import ClassVar

from essa_dist.adapters.interface import Adapter
from essa_dist.backbones.vit import Backbone
from essa_dist.errors import UsageError


class Combined:
    """Several adapters over one trunk, each with tensors of its own."""

    merges: ClassVar[bool]
    starts_exact: ClassVar[bool]
    yields: ClassVar[bool] = False

    def __init__(self, parts: Sequence[tuple[Adapter, str]]) -> None:
        """``parts``: adapters with their names."""
        self.parts = sorted(parts, key=lambda part: part[0].yields)
        # Of this combination, not of all of them.
        self.merges = all(part.merges for part, _ in parts)  # type: ignore[misc]
        self.starts_exact = all(part.starts_exact for part, _ in parts)  # type: ignore[misc]
        self.silent = tuple(pattern for part, _ in parts for pattern in part.silent)

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        trained: dict[int, tuple[str, str]] = {}  # id of the tensor -> the adapter that trains it, its name
        for part, kind in self.parts:
            if not part.yields:
                backbone.requires_grad_(False)  # so that a part shows what it would train, were it alone
            part.inject(backbone, seed=seed)
            names = {id(p): name for name, p in backbone.named_parameters()}
            found = [p for p in backbone.parameters() if p.requires_grad]
            own = [p for p in found if not (part.yields and id(p) in trained)]
            if not own:
                raise UsageError(
                    f"adapter: {kind} adds nothing in {'+'.join(name for _, name in self.parts)}; leave it out"
                )
            # Trained by both, or moved into a new module, where the first one's tensor would not be what it was.
            clashes = [trained[id(p)] for p in own if id(p) in trained]
            clashes += [(of, name) for key, (of, name) in trained.items() if names.get(key) != name]
            if clashes:
                tensors = ", ".join(name for _, name in clashes[:4]) + (", ..." if len(clashes) > 4 else "")
                raise UsageError(
                    f"adapter: {clashes[0][0]} and {kind} both train or change {tensors}; "
                    "choose adapters or targets that differ"
                )
            trained |= {id(p): (kind, names[id(p)]) for p in own}
            for parameter in backbone.parameters():
                parameter.requires_grad_(id(parameter) in trained)

    def merge(self, backbone: Backbone) -> None:
        for part, _ in reversed(self.parts):
            part.merge(backbone)
