"""What is wrong with a field of a request, in plain words: pydantic's findings as errors of the API."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bitdance_edge.serve.errors import ApiError

SHOWN = 60  # characters of a refused value that its message repeats
TYPES = ("bool", "float", "int", "str")  # no field has such a name
Finding = Mapping[str, Any]

# By pydantic's type of error: what the value must be.
NEEDED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "string_type": lambda _: "a string",
    "string_unicode": lambda _: "text that UTF-8 can hold",
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


def field_error(findings: Sequence[Finding]) -> ApiError:
    """The 400 for what pydantic found about a body, a path or a query: its first wrong field."""
    found = findings[0]
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
    return ApiError(400, "invalid_value", _sentence(findings), param=place[0])


def _sentence(findings: Sequence[Finding]) -> str:
    """What is wrong with the first field; of a field of several types, what each needs."""
    first = _without_types(findings[0])
    of_it = [other for other in findings if _without_types(other)[: len(first)] == first]
    found = max(of_it, key=lambda other: len(_without_types(other)))  # of an array, its first wrong value
    name = ".".join(place := _without_types(found))
    if found["type"] not in NEEDED:  # one of our own validators: its sentence is whole
        return str(found.get("ctx", {}).get("error", f"{name} is not valid: {found['msg']}"))
    same = [other for other in of_it if _without_types(other) == place and other["type"] in NEEDED]
    needed = dict.fromkeys(NEEDED[other["type"]](other.get("ctx", {})) for other in same)
    return f"{name} is {_shown(found['input'])}; it must be {', or '.join(needed)}"


def _without_types(found: Finding) -> list[str]:
    """The path of a field, without the names that pydantic gives to the types of a union."""
    first, *rest = (str(part) for part in found["loc"][1:])
    return [first, *(part for part in rest if part.isdecimal() or (part.isidentifier() and part not in TYPES))]


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"an array of {len(value)}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = repr(value[: SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
