"""Words of a command line inside one text."""

import re
from typing import Any


def words_of(value: Any) -> Any:
    """``a=1,b=[2,3]`` as ``a=1`` and ``b=[2,3]``: only a comma before another ``key=`` parts. What is no text stays."""
    if not isinstance(value, str):
        return value
    return [word for part in re.split(r",(?=\s*[A-Za-z_][\w.]*=)", value) if (word := part.strip(" ,"))]
