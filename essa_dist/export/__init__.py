"""Loading models by name or path, and handing adapted ones to other programs."""

from essa_dist.export.export import ExportConfig, export
from essa_dist.export.models import load_model

__all__ = ["ExportConfig", "export", "load_model"]
