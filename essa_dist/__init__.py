"""Self-supervised adaptation of vision transformers to medical images, training only an adapter.

The verbs of the ``essa`` command are also Python calls: ``from essa_dist import adapt, evaluate, export, pack, report``.
"""

from essa_dist import _torchvision

_torchvision.cure()  # before anything can import torchvision

__version__ = "0.1.0"

import sys  # noqa: E402

from essa_dist.verbs import Package, adapt, evaluate, export, pack, report  # noqa: E402

sys.modules[__name__].__class__ = Package

__all__ = ["__version__", "adapt", "evaluate", "export", "pack", "report"]
