"""How many samples may be unreadable before a job stops."""

from essa_dist.settings import Config


class BadQuota(Config):
    """Unreadable samples are skipped or replaced, and counted, until there are more than allowed."""

    count: int = 10
    """This many are always allowed."""
    fraction: float = 0.01
    """This share of the data set is allowed too, where it is more than ``count`` samples."""

    def allowed(self, total: int) -> int:
        """The number of bad samples that a data set of ``total`` samples may have."""
        return max(self.count, int(self.fraction * total))
