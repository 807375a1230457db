"""What is wrong with a field of a request, in plain words: pydantic's findings as errors of the API."""

from collections.abc import Callable, Mapping
from typing import Any

from bitdance_edge.serve.errors import ApiError

SHOWN = 60  # characters of a refused value that its message repeats
Finding = Mapping[str, Any]

# By pydantic's type of error: what the value must be.
NEEDED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "string_type": lambda _: "a string",
    "string_too_short": lambda limits: f"a string of at least {limits['min_length']} character",
    "string_too_long": lambda limits: f"a string of at most {limits['max_length']:,} characters",
    "int_type": lambda _: "a whole number",
    "int_from_float": lambda _: "a whole number",
    "int_parsing": lambda _: "a whole number",
    "int_parsing_size": lambda _: "a whole number of at most 19 digits",
    "float_type": lambda _: "a number",
    "float_parsing": lambda _: "a number",
    "finite_number": lambda _: "a finite number",
    "bool_type": lambda _: "true or false",
    "bool_parsing": lambda _: "true or false",
    "literal_error": lambda limits: limits["expected"],
    "greater_than_equal": lambda limits: f"{limits['ge']} or more",
    "less_than_equal": lambda limits: f"{limits['le']} or less",
    "list_type": lambda _: "an array",
    "too_long": lambda limits: f"an array of at most {limits['max_length']}",
    "too_short": lambda limits: f"an array of at least {limits['min_length']}",
    "dict_type": lambda _: "an object",
    "model_type": lambda _: "an object",
    "model_attributes_type": lambda _: "an object",
}


def field_error(found: Finding) -> ApiError:
    """The 400 for the first finding of pydantic about a body, a path or a query."""
    place = [str(part) for part in found["loc"][1:]]
    if found["type"] == "json_invalid":
        return ApiError(400, "invalid_json", f"the body cannot be read as JSON: {found['ctx']['error']}")
    if not place:
        return ApiError(400, "invalid_json", "send a JSON object, with Content-Type: application/json")
    name = ".".join(place)
    if found["type"] == "extra_forbidden":
        message = f"unknown field {name[:200]!r}; /openapi.json lists the known ones"
        return ApiError(400, "unknown_parameter", message, param=name)
    if found["type"] == "missing":
        return ApiError(400, "missing_parameter", f"{name} is missing", param=name)
    return ApiError(400, "invalid_value", _sentence(name, found), param=place[0])


def _sentence(name: str, found: Finding) -> str:
    needed = NEEDED.get(found["type"])
    if needed is None:  # one of our own validators: its sentence is whole
        return str(found.get("ctx", {}).get("error", f"{name} is not valid: {found['msg']}"))
    return f"{name} is {_shown(found['input'])}; it must be {needed(found.get('ctx', {}))}"


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"an array of {len(value)}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = repr(value[: SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
