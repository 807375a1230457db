"""Flags of every command take the values that they name, and refuse others in one line."""

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from commanding import status_of

from bitdance_edge.cli import COMMANDS, command_parser
from bitdance_edge.commands import values

pytestmark = pytest.mark.usefixtures("cheap")
ODD = (
    *("1" + "0" * 23, "9" * 5000, "-1", "-9" * 3000, "nan", "inf", "-inf", "1e400", "0x10", "1_0", "٣", "½"),
    *(
        "",
        " ",
        "two",
        "None",
        "true",
        "1,,2",
        "1;2",
        "\udcff",
        "\ud800",
        "\0",
        "1\n2",
        "%",
        "nan%",
        "-1%",
        "101%",
    ),
)
NUMBERS = (values.whole(0, 9), values.number(0, 9), values.percentage, values.whole_list(1, 9))


def actions(command: str) -> Iterator[argparse.Action]:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"bitdance_edge.commands.{command}").configure(parser)
    yield from parser._actions


@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_reads_numbers_or_paths_by_itself(command: str) -> None:
    assert not [action.dest for action in actions(command) if action.type in (int, float, Path)]


@pytest.mark.parametrize("command", COMMANDS)
def test_odd_values_of_every_flag_are_refused_in_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser, number_types = command_parser([command]), {read.__qualname__ for read in NUMBERS}
    for action in actions(command):
        if not action.option_strings or getattr(action.type, "__qualname__", "") not in number_types:
            continue
        for value in ODD:
            with pytest.raises(SystemExit) as ended:
                parser.parse_args([command, f"{action.option_strings[0]}={value}"])
            error = capsys.readouterr().err
            assert ended.value.code == 2 and error.count("\n") == 1 and len(error) < 300, error
            assert action.option_strings[0] in error


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (values.whole(0, 9), "7", 7),
        (values.whole(0, 9), " +07 ", 7),
        (values.whole(-9, 9), "-7", -7),
        (values.whole(0, 2**63 - 1), str(2**63 - 1), 2**63 - 1),
        (values.number(0, 9), "7", 7.0),
        (values.number(0, 9), ".5", 0.5),
        (values.number(0, 9), "5.", 5.0),
        (values.number(0, 9), "2.5e-1", 0.25),
        (values.percentage, "0.5%", 0.005),
        (values.percentage, "100", 1.0),
        (values.whole_list(1, 9), "2, 1,2", [2, 1]),
        (values.text, "ein rötlicher Kreis", "ein rötlicher Kreis"),
        (values.path, "a/b.png", Path("a/b.png")),
    ],
)
def test_values_are_read(read, text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize("text", ["caf\udce9", "\ud800"])
def test_text_that_is_none_in_this_locale_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no text in this locale"):
        values.text(text)


@pytest.mark.parametrize(
    "classes", ["0-" + "9" * 5000, "9" * 5000, "5-1", "0-1000000000", "٣", "0-٣", "", ",", "\udcff"]
)
def test_odd_classes_are_refused_in_one_line(tmp_path: Path, bundle, classes: str, capsys) -> None:
    assert status_of("generate", bundle.folder, f"--classes={classes}", "--out", tmp_path / "images") in (1, 2)
    error = capsys.readouterr().err
    assert "Traceback" not in error and len(error.splitlines()[-1]) < 300
    assert not list(tmp_path.iterdir())


def test_usage_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["generate"], ["generate", "b", "--colour"], ["paint"], ["generate", "b", "--classes"]):
        assert status_of(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("bitdance-edge") and "--help says more" in line
