"""What pydantic says of data that is not as it should be, in the words of our own errors."""

from __future__ import annotations

from pydantic import ValidationError


def first_mistake(error: ValidationError) -> tuple[str, str]:
    """Where, with dots between ("" for all of it), and what. Nothing of the content is in it.

    >>> from pydantic import BaseModel
    >>> class Size(BaseModel):
    ...     mib: int
    >>> try:
    ...     Size.model_validate({"mib": "secret"})
    ... except ValidationError as error:
    ...     first_mistake(error)[0]
    'mib'
    """
    first = error.errors(include_input=False, include_url=False, include_context=False)
    return ".".join(map(str, first[0]["loc"])), first[0]["msg"]
