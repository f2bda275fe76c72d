"""What a client is told when a request is refused: where, which field and why, never a value."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse

LONGEST_NAME = 64
"""Characters of an unknown field's name that are told back."""
MOST_PROBLEMS = 50
"""Problems that are told of one record: an answer must not be larger than what was sent."""

_REASONS = {
    "missing": "missing",
    "extra_forbidden": "not a field that is scored",
    "float_type": "not a number",
    "float_parsing": "not a number",
    "int_type": "not a whole number",
    "int_parsing": "not a whole number",
    "int_from_float": "not a whole number",
    "finite_number": "not finite",
    "string_type": "not a text",
    "string_unicode": "not a text in Unicode",
    "string_too_long": "a text that is too long",
    "list_type": "not a list",
    "too_long": "a list that is too long",
    "too_short": "a list that is too short",
    "model_type": "not an object",
    "model_attributes_type": "not an object",
    "dict_type": "not an object",
    "json_invalid": "not valid JSON",
    "enum": "not one of the values that can be asked for",
    "literal_error": "not one of the values that can be asked for",
    "greater_than_equal": "too small",
    "less_than_equal": "too large",
}


class Problem(BaseModel):
    """Why a request, or a row of one, is refused."""

    field: str
    reason: str
    loc: list[str | int]


class Refusal(BaseModel):
    """The body of every answer that is no success."""

    detail: list[Problem]
    request_id: str


def problems_of(errors: Sequence[Any], depth: int = 0) -> list[Problem]:
    """Errors of pydantic in our words; their own hold what was sent.

    Args:
        errors: What pydantic or FastAPI list.
        depth: Parts of a place that stand before the field: 1 where it begins with "body".
    """
    return [_problem(error, depth) for error in errors[:MOST_PROBLEMS]]


def refuse(
    status: int,
    problems: Sequence[Problem],
    request_id: str,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An answer that says why there is no other."""
    body = Refusal(detail=list(problems), request_id=request_id)
    return JSONResponse(body.model_dump(), status, headers)


def because(reason: str, field: str = "") -> list[Problem]:
    """A single problem of the whole request."""
    return [Problem(field=field, reason=reason, loc=[field] if field else [])]


def _problem(error: Mapping[str, Any], depth: int) -> Problem:
    loc = [part if isinstance(part, int) else _name(part) for part in error["loc"][depth:]]
    field = loc[0] if loc and isinstance(loc[0], str) else ""
    return Problem(field=field, reason=_REASONS.get(error["type"], "not valid"), loc=loc)


def _name(part: object) -> str:
    """An unknown field's name may be anything that a client sent, half of a character too."""
    return str(part).encode("utf-8", "replace").decode()[:LONGEST_NAME]
