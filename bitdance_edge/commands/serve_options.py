"""The options of ``bitdance-edge serve``, each of which a flag, an environment variable or a file may give."""

import argparse
import math
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitdance_edge.serve.errors import ServeError
from bitdance_edge.serve.settings import ServeSettings

PREFIX = "BITDANCE_EDGE_SERVE_"
TOKEN_VARIABLE = "BITDANCE_EDGE_TOKEN"
DEFAULTS = ServeSettings(bundles=())
Values = dict[str, Any]


def whole(text: str) -> int:
    return int(text)


def seconds(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def megabytes(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e12:
        raise ValueError(text)
    return value


def switch(text: str) -> bool:
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]


def alias(text: str) -> tuple[str, str]:
    name, separator, model = text.partition("=")
    if not separator or not 0 < len(name) <= 200 or not model:
        raise ValueError(text)
    return name, model


def level(text: str) -> str:
    if text not in ("info", "warning", "error"):
        raise ValueError(text)
    return text


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: how its text is read, what it must be where that fails, and whether it may be repeated."""

    meaning: str
    read: Callable[[str], Any] = str
    needed: str = "text"
    default: Any = None
    many: bool = False
    metavar: str | None = None
    separator: str = ","  # between the values of a variable

    def parse(self, name: str, text: str) -> Any:
        """Raises: ServeError: names the option, the text and what is needed."""
        try:
            return self.read(text)
        except (ValueError, KeyError, OverflowError):
            raise ServeError(f"{name} is {text[:80]!r}; it must be {self.needed}") from None


def _number(name: str, meaning: str) -> Option:
    default = getattr(DEFAULTS, name)
    kind, needed = (whole, "a whole number") if isinstance(default, int) else (seconds, "a number of seconds")
    return Option(meaning=meaning, read=kind, needed=needed, default=default)


OPTIONS: dict[str, Option] = {
    "bundles": Option(
        meaning="folder of a bundle; the first is the default model",
        read=Path,
        default=[],
        many=True,
        metavar="BUNDLE",
        separator=os.pathsep,
    ),
    "host": Option(meaning="address to listen on", default="127.0.0.1"),
    "port": Option(
        meaning="port to listen on; 0: any free port, which is printed",
        read=whole,
        needed="a whole number",
        default=8000,
    ),
    "device": Option(meaning="as for generate; repeat it to start one worker per device", default=["auto"], many=True),
    "threads": Option(
        meaning="threads of each graph (default: one per physical core)", read=whole, needed="a whole number"
    ),
    "queue": _number("queue", "requests that may wait; more are refused with 429"),
    "max_batch": _number("max_batch", "images in one batch, at most"),
    "batch_window": _number("batch_window", "seconds that a free worker waits for more requests to batch"),
    "time_limit": _number("time_limit", "seconds a request may take, including its wait"),
    "max_images": _number("max_images", "images of one request, at most"),
    "max_steps": _number("max_steps", "sampling steps of one request, at most"),
    "max_prompt": _number("max_prompt", "characters of a prompt, at most"),
    "max_body": _number("max_body", "bytes of a request with a picture, at most; others may have 65,536"),
    "max_connections": _number("max_connections", "open connections, at most"),
    "keep_alive": _number("keep_alive", "seconds of silence on a stream before a keep-alive comment is sent"),
    "grace": _number("grace", "seconds that a stopping server waits for its requests"),
    "memory": Option(
        meaning="memory that generation may use (default: what is free)",
        read=megabytes,
        needed="a number of megabytes",
        metavar="MB",
    ),
    "alias": Option(
        meaning="a further name of a model, for clients that have one built in; may be repeated",
        read=alias,
        needed="NAME=MODEL",
        default=[],
        many=True,
        metavar="NAME=MODEL",
    ),
    "nearest_size": Option(
        meaning="make the nearest size in place of one that the model does not make",
        read=switch,
        needed="true or false",
        default=False,
    ),
    "cors": Option(
        meaning="site whose pages may use the API, such as https://example.org, or *; may be repeated",
        default=[],
        many=True,
        metavar="ORIGIN",
    ),
    "allow_host": Option(
        meaning="a further name of this server, such as that of a proxy that keeps Host; may be repeated",
        default=[],
        many=True,
        metavar="NAME",
    ),
    "token_file": Option(
        meaning=f"file with the bearer token to require (default: {TOKEN_VARIABLE})", read=Path, metavar="FILE"
    ),
    "log_level": Option(
        meaning="info, warning or error", read=level, needed="info, warning or error", default="info", metavar="LEVEL"
    ),
    "log_prompts": Option(meaning="write prompts into the log", read=switch, needed="true or false", default=False),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each option; what is not given is None, so that a variable or the file may give it."""
    parser.add_argument("--config", metavar="FILE", help="TOML file with options")
    for name, option in OPTIONS.items():
        shown = f" (default {option.default})" if isinstance(option.default, int | float | str) else ""
        if name == "bundles":
            parser.add_argument(name, nargs="*", metavar=option.metavar, help=option.meaning)
            continue
        flag = f"--{name.replace('_', '-')}"
        if option.read is switch:
            parser.add_argument(flag, dest=name, action="store_const", const="true", help=option.meaning)
        else:
            action = "append" if option.many else "store"
            parser.add_argument(flag, dest=name, action=action, metavar=option.metavar, help=option.meaning + shown)


def read_values(args: argparse.Namespace, environment: Mapping[str, str]) -> Values:
    """The value of every option: from its flag, else its variable, else the file, else its default.

    Raises:
        ServeError: a value or a name is wrong, or the file cannot be read.
    """
    variables = dict(_variables(environment))
    config = args.config or variables.pop("config", None)
    sources = [
        {name: (_flag(name), value) for name in OPTIONS if (value := getattr(args, name)) not in (None, [])},
        variables,
        {} if config is None else dict(_file_values(Path(config))),
    ]
    values: Values = {}
    for name, option in OPTIONS.items():
        given = next((source[name] for source in sources if name in source), None)
        if given is None:
            values[name] = option.default
        elif option.many:
            values[name] = [option.parse(given[0], text) for text in given[1]]
        else:
            values[name] = option.parse(*given)
    return values


def _variables(environment: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Pairs of an option's name, and its variable with its value or values; ``config`` has the value alone."""
    for variable, value in environment.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name == "config":
            yield name, value
        else:
            option = _known(name, f"variable {variable}")
            yield name, (variable, [part for part in value.split(option.separator) if part] if option.many else value)


def _file_values(file: Path) -> Iterator[tuple[str, tuple[str, Any]]]:
    """The options of a TOML file, as texts. Paths in it are relative to its folder; ``alias`` may be a table."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ServeError(f"--config {file} cannot be read: {error}") from None
    for key, value in table.items():
        name, shown = key.replace("-", "_"), f"{key} in {file}"
        option = _known(name, shown)
        if name == "alias" and isinstance(value, dict):
            value = [f"{given}={model}" for given, model in value.items()]
        values = value if isinstance(value, list) else [value]
        if any(not isinstance(each, str | int | float | bool) for each in values) or (
            not option.many and isinstance(value, list)
        ):
            raise ServeError(f"{shown} must be {'a list of ' if option.many else ''}{option.needed}")
        texts = [str(file.parent / each) if option.read is Path else str(each) for each in values]
        yield name, (shown, texts if option.many else texts[0])


def _known(name: str, shown: str) -> Option:
    if name not in OPTIONS:
        known = ", ".join(OPTIONS)
        raise ServeError(f"{shown}: there is no such option; there are {known}")
    return OPTIONS[name]


def _flag(name: str) -> str:
    return name if name == "bundles" else f"--{name.replace('_', '-')}"
