"""Guards: what would spoil an evaluation or harm a patient is found while the data are packed."""

from essa_dist.packing.guards.config import GuardConfig
from essa_dist.packing.guards.examine import examine
from essa_dist.packing.guards.findings import FINDINGS_FILE, Findings, read_findings
from essa_dist.packing.guards.fingerprint import (
    BLANK_SPREAD,
    FINGERPRINT,
    Fingerprint,
    fingerprint,
    table_of,
)
from essa_dist.packing.guards.table import Table

__all__ = [
    "BLANK_SPREAD",
    "FINDINGS_FILE",
    "FINGERPRINT",
    "Findings",
    "Fingerprint",
    "GuardConfig",
    "Table",
    "examine",
    "fingerprint",
    "read_findings",
    "table_of",
]
