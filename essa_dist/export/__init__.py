"""Loading models by name or path, and handing adapted ones to other programs."""

from essa_dist.export.models import load_model
from essa_dist.export.timm import ExportConfig, export

__all__ = ["ExportConfig", "export", "load_model"]
