"""Classes in an order: grades of a disease, scores."""

from collections.abc import Sequence

from essa_dist.errors import UsageError


def grades_of(classes: Sequence[str], order: Sequence[str] | None) -> tuple[int, ...] | None:
    """Rank of each class, the lowest 0; None: they have no order.

    Without ``order`` they have one if their names are numbers. Raises UsageError for an ``order`` of other classes.
    """
    if order is None:
        try:
            order = sorted(classes, key=float)
        except ValueError:
            return None
    if sorted(order) != sorted(classes):
        raise UsageError(
            f"task.order names {', '.join(order)}; it must name each class once: {', '.join(classes)}"
        )
    return tuple(order.index(name) for name in classes)
