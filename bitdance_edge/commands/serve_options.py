"""The options of ``bitdance-edge serve``, each of which a flag, an environment variable or a file may give."""

import argparse
import os
import tomllib
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitdance_edge.commands.values import number, path, shown, text, whole
from bitdance_edge.runtime.pipeline import MAX_THREADS
from bitdance_edge.runtime.reading import read_text
from bitdance_edge.serve.errors import ServeError
from bitdance_edge.serve.settings import BOUNDS, TOKEN_VARIABLE, ServeSettings

PREFIX = "BITDANCE_EDGE_SERVE_"
DEFAULTS = ServeSettings(bundles=())
LEVELS = ("info", "warning", "error")
ENGINES = ("local", "ray")
MOST_NAME = 200  # characters of an alias
Values = dict[str, Any]


def switch(value: str) -> bool:
    """Read what a variable or a file says of a flag without a value."""
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value.lower() not in known:
        raise ArgumentTypeError(f"{shown(value)} is not true or false")
    return known[value.lower()]


def alias(value: str) -> tuple[str, str]:
    """Read NAME=MODEL."""
    name, separator, model = value.partition("=")
    if not separator or not 0 < len(name) <= MOST_NAME or not model:
        raise ArgumentTypeError(f"{shown(value)} is not NAME=MODEL, with a name of at most {MOST_NAME} characters")
    return name, model


def level(value: str) -> str:
    """Read a level of the log."""
    if value not in LEVELS:
        raise ArgumentTypeError(f"{shown(value)} is not one of {', '.join(LEVELS)}")
    return value


def engine(value: str) -> str:
    """Read what runs the server."""
    if value not in ENGINES:
        raise ArgumentTypeError(f"{shown(value)} is not one of {', '.join(ENGINES)}")
    return value


def replicas(value: str) -> tuple[int, int]:
    """Read a number of replicas, or LEAST-MOST."""
    read = whole(1, 10_000)
    least, separator, most = value.partition("-")
    numbers = read(least), read(most if separator else least)
    if numbers[0] > numbers[1]:
        raise ArgumentTypeError(f"{shown(value)} is not LEAST-MOST")
    return numbers


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: what it means, how its text is read, and whether it may be repeated."""

    meaning: str
    read: Callable[[str], Any] = text
    default: Any = None
    many: bool = False
    metavar: str | None = None
    separator: str = ","  # between the values of a variable

    def parse(self, name: str, value: str) -> Any:
        """Read a value that is not a flag's. Raises: ServeError: names where it is, the value and what is allowed."""
        try:
            return self.read(value)
        except ArgumentTypeError as error:
            raise ServeError(f"{name}: {error}") from None


def _number(name: str, meaning: str) -> Option:
    default, (least, most) = getattr(DEFAULTS, name), BOUNDS[name]
    whole_number = isinstance(default, int)
    read = whole(int(least), int(most)) if whole_number else number(least, most, unit=" of seconds")
    return Option(meaning=meaning, read=read, default=default)


OPTIONS: dict[str, Option] = {
    "bundles": Option(
        meaning="folder of a bundle, or its packed .tar; the first is the default model",
        read=path,
        default=[],
        many=True,
        metavar="BUNDLE",
        separator=os.pathsep,
    ),
    "host": Option(meaning="address to listen on", default="127.0.0.1"),
    "port": Option(
        meaning="port to listen on; 0: any free port, which is printed",
        read=whole(0, 65535),
        default=8000,
    ),
    "device": Option(meaning="as for generate; repeat it to start one worker per device", default=["auto"], many=True),
    "threads": Option(
        meaning="threads of each graph (default: one per physical core; 1 for a small model)",
        read=whole(1, MAX_THREADS),
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
        read=number(1, 1e9, unit=" of MB"),
        metavar="MB",
    ),
    "alias": Option(
        meaning="a further name of a model, for clients that have one built in; may be repeated",
        read=alias,
        default=[],
        many=True,
        metavar="NAME=MODEL",
    ),
    "nearest_size": Option(
        meaning="make the nearest size in place of one that the model does not make",
        read=switch,
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
        meaning=f"file with the bearer token to require (default: {TOKEN_VARIABLE})", read=path, metavar="FILE"
    ),
    "engine": Option(
        meaning="local: this process and its workers; ray: replicas of Ray Serve", read=engine, default="local"
    ),
    "address": Option(meaning="with ray: HOST:PORT of a cluster, auto (default), or local to start one", metavar="A"),
    "replicas": Option(
        meaning="with ray: replicas, each of one device, or LEAST-MOST by the length of their queues (default 1)",
        read=replicas,
        default=(1, 1),
        metavar="N",
    ),
    "replica_cpus": Option(
        meaning="with ray: CPUs that a replica takes of its machine", read=number(0, 4096), default=1.0
    ),
    "replica_gpus": Option(
        meaning="with ray: GPUs that a replica takes of its machine", read=number(0, 64), default=0.0
    ),
    "log_level": Option(meaning="info, warning or error", read=level, default="info", metavar="LEVEL"),
    "log_prompts": Option(meaning="write prompts into the log", read=switch, default=False),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each option; what is not given is None, so that a variable or the file may give it."""
    parser.add_argument("--config", metavar="FILE", help="TOML file with options")
    for name, option in OPTIONS.items():
        default = f" (default {option.default})" if isinstance(option.default, int | float | str) else ""
        if name == "bundles":
            parser.add_argument(name, nargs="*", type=path, metavar=option.metavar, help=option.meaning)
            continue
        flag = f"--{name.replace('_', '-')}"
        if option.read is switch:
            parser.add_argument(flag, dest=name, action="store_const", const=True, help=option.meaning)
        else:
            action = "append" if option.many else "store"
            help_ = option.meaning + default
            parser.add_argument(flag, dest=name, action=action, type=option.read, metavar=option.metavar, help=help_)


def read_values(args: argparse.Namespace, environment: Mapping[str, str]) -> Values:
    """The value of every option: from its flag, else its variable, else the file, else its default.

    Raises:
        ServeError: a value or a name is wrong, or the file cannot be read.
    """
    variables = dict(_variables(environment))
    config = variables.pop("config", None) if args.config is None else args.config
    texts = ({} if config is None else dict(_file_values(Path(config)))) | variables
    values: Values = {}
    for name, option in OPTIONS.items():
        if (flag := getattr(args, name)) not in (None, []):
            values[name] = flag
        elif name not in texts:
            values[name] = option.default
        else:
            place, given = texts[name]
            parsed = [option.parse(place, each) for each in (given if option.many else [given])]
            values[name] = parsed if option.many else parsed[0]
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
        table = tomllib.loads(read_text(file, "configuration"))
    except RecursionError:
        raise ServeError(f"{file} is nested too deep") from None
    except tomllib.TOMLDecodeError as error:
        raise ServeError(f"{file} is not TOML: {error}") from None
    names = set()
    for key, value in table.items():
        name, place = key.replace("-", "_"), f"{key[:80]} in {file}"
        option = _known(name, place)
        if name in names:
            raise ServeError(f"{place} is given twice, with - and with _; omit one of the two")
        names.add(name)
        if name == "alias" and isinstance(value, dict):
            value = [f"{given}={model}" for given, model in value.items()]
        values = value if isinstance(value, list) else [value]
        if any(not isinstance(each, str | int | float | bool) for each in values) or (
            not option.many and isinstance(value, list)
        ):
            raise ServeError(f"{place} must be {'a list of values' if option.many else 'one value'}")
        if option.read is path and not all(isinstance(each, str) for each in values):
            raise ServeError(f"{place} must be {'a list of paths' if option.many else 'a path'}, in quotes")
        texts = [str(file.parent / each) if option.read is path else str(each) for each in values]
        yield name, (place, texts if option.many else texts[0])


def _known(name: str, place: str) -> Option:
    if name not in OPTIONS:
        known = ", ".join(OPTIONS)
        raise ServeError(f"{place}: there is no such option; there are {known}")
    return OPTIONS[name]
