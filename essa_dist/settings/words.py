"""Several things in one text, as a command line and a line of YAML hold them."""

import re
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field

T = TypeVar("T")


def several(value: Any) -> Any:
    """``10,20`` as a list, without what is empty, and one number as a list of one. What is neither stays."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, (int, float)) else value


Several = Annotated[tuple[T, ...], BeforeValidator(several)]
OneOrMore = Annotated[Several[T], Field(min_length=1)]


def words_of(value: Any) -> Any:
    """``a=1,b=[2,3]`` as ``a=1`` and ``b=[2,3]``: only a comma before another ``key=`` parts. What is no text stays."""
    if not isinstance(value, str):
        return value
    return [word for part in re.split(r",(?=\s*[A-Za-z_][\w.]*=)", value) if (word := part.strip(" ,"))]


Words = Annotated[tuple[str, ...], BeforeValidator(words_of)]
