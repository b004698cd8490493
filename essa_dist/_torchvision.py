"""Make ``import torchvision`` work beside a CPU build of torch.

torchvision has no CPU wheel on the usual registry. Its compiled library can't be loaded without CUDA, so its Python side
then fails on the first operator that it expects there. With two operator schemas declared by hand it imports; transforms
v2 and everything built on it (timm, peft, accelerate) work, while ``torchvision.ops.nms`` and ``torchvision.io`` don't.
"""

import logging
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

SYMPTOM = "operator torchvision::nms does not exist"
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_library: "torch.library.Library | None" = None  # torch drops the schemas when this object dies


def cure() -> None:
    """Arrange that the first ``import torchvision`` is mended if, and only if, it shows the symptom.

    Costs nothing until then: torch itself is not imported here. A healthy torchvision is never touched.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def was_needed() -> bool:
    """Whether torchvision was imported in this process and had to be mended."""
    return _library is not None


class _Finder:
    """Hands torchvision's own source file to :class:`_CuringLoader`; every other module is left to the rest."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _CuringLoader(spec.loader.name, spec.loader.path)
        return spec


class _CuringLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except RuntimeError as error:
            if SYMPTOM not in str(error) or was_needed():
                raise
            _declare_operators()
            _forget_submodules()  # those of the failed attempt, imported before the operators existed
            super().exec_module(module)


def _declare_operators() -> None:
    global _library
    from torch.library import Library

    logger.debug(
        "torchvision's compiled operators can't be loaded here; declaring the two it needs to import"
    )
    _library = Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        _library.define(schema)


def _forget_submodules() -> None:
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        del sys.modules[name]
