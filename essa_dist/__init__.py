"""Self-supervised adaptation of vision transformers to medical images, training only an adapter.

The verbs of the ``essa`` command are also Python calls: ``from essa_dist import pack, adapt, finetune, evaluate,
export, embed, predict, report``.
"""

from essa_dist import _torchvision

_torchvision.cure()  # before anything can import torchvision

__version__ = "0.1.0"

import sys  # noqa: E402

from essa_dist.verbs import (  # noqa: E402
    Package,
    adapt,
    embed,
    evaluate,
    export,
    finetune,
    pack,
    predict,
    report,
)

sys.modules[__name__].__class__ = Package

__all__ = [
    "__version__",
    "adapt",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "pack",
    "predict",
    "report",
]
