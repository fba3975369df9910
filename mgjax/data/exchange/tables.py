"""Tables as people's programs write them: CSV of any locale, JSON and JSON lines, as rows that know where they stand.

CSV: the separator (comma, semicolon, tab, bar) is the one that parts the first line most often, or what Excel's line
`sep=;` says; beside one that is no comma, 3,5 is a number. Names are compared in lower case. Lines without a value are
skipped.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mgjax.errors import InputError

SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson")
_SEPARATORS = ",;\t|"
_WORDS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0, "on": 1.0, "off": 0.0}
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")


class Row(NamedTuple):
    """One row of an annotation file."""

    file: Path
    place: str  # "line 7" or "frame 7"
    values: dict  # by name in lower case

    def wrong(self, text: str) -> InputError:
        return InputError(f"{self.file}, {self.place}: {text}")

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        if value is None or value == "":
            if default is None:
                raise self.wrong(f"{name} is missing")
            return default
        try:
            if isinstance(value, str) and value.strip().lower() in _WORDS:
                return _WORDS[value.strip().lower()]
            if isinstance(value, list | dict):
                raise TypeError
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise self.wrong(f"{name} is {str(value)[:40]!r}, and should be a number") from None

    def known(self, name: str) -> float:
        """A number that has to be there and finite."""
        number = self.number(name)
        if not np.isfinite(number):
            raise self.wrong(f"{name} is {number}, and should be finite")
        return number

    def choice(self, name: str, count: int, why: str = "") -> int:
        number = self.known(name)
        if number not in range(count):
            raise self.wrong(f"{name} is {number:g}, and should be a whole number from 0 to {count - 1}{why}")
        return int(number)

    def time(self, name: str) -> float:
        """Seconds (or what unit the column has), also of a date and time as in 2026-11-26 10:00:00.25."""
        value = self.values.get(name)
        if isinstance(value, str) and ":" in value:
            value = value.replace(",", ".")  # also beside commas: they are quoted then
            try:
                if value.count("-") < 2:  # a time of day, or since the start
                    hours, minutes, seconds = ["0", *value.split(":")][-3:]
                    return 3600 * float(hours) + 60 * float(minutes) + float(seconds)
                return datetime.datetime.fromisoformat(value.strip()).timestamp()
            except ValueError:
                raise self.wrong(f"{name} is {value[:40]!r}, and should be a time") from None
        return self.known(name)


def read_text(file: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 that says so as Excel's does."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        hint = "save it as CSV UTF-8" if file.suffix.lower() == ".csv" else "save it in UTF-8"
        raise InputError(f"{file} is not a text in UTF-8 (byte {error.start}): {hint}") from None


def read_rows(file: Path) -> list[Row]:
    """The rows of a table.

    Raises:
      InputError: names the file and line of what is wrong; a table without rows is wrong, too.
    """
    read = {".json": _json_rows, ".jsonl": json_lines, ".ndjson": json_lines}.get(file.suffix.lower(), _csv_rows)
    rows = read(file)
    if not rows:
        raise InputError(f"{file} has no rows")
    return rows


def parse_json(file: Path, text: str, place: str = ""):
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"{file}{place and ', '}{place}: this is nested too deep") from None
    except ValueError as error:
        line = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "somewhere"
        raise InputError(f"{file}, {place or line}: this is not JSON ({error})") from None


def _csv_rows(file: Path) -> list[Row]:
    text = read_text(file)
    if "\0" in text:
        raise InputError(f"{file} is no text: it holds zero bytes")
    first = next((line for line in text.splitlines() if line.strip()), "")
    said = re.fullmatch(r'"?sep=(.)"?', first.strip("\r\n"))
    separator = said[1] if said else max(_SEPARATORS, key=first.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows, header = [], None
    try:
        for values in lines:
            place = f"line {lines.line_num}"
            if not any(value.strip() for value in values) or (said and header is None and values[0][:4] == "sep="):
                continue
            if header is None:
                header = _names(file, place, values)
                continue
            while len(values) > len(header) and not values[-1].strip():
                values.pop()
            if len(values) != len(header):
                raise InputError(
                    f"{file}, {place}: it has {len(values)} values, and the first line has {len(header)}"
                    + ("" if len(header) > 1 else f" ({first.strip()[:40]!r}: separated by commas, semicolons or tabs)")
                )
            if separator != ",":
                values = [v.replace(",", ".") if _DECIMAL_COMMA.fullmatch(v.strip()) else v for v in values]
            rows.append(Row(file, place, dict(zip(header, values, strict=True))))
    except csv.Error as error:
        raise InputError(f"{file}, line {lines.line_num}: this is not CSV ({error})") from None
    if header is None:
        raise InputError(f"{file}, line 1: the columns need names that differ")
    return rows


def _names(file: Path, place: str, values: list[str]) -> list[str]:
    """Names of the columns in lower case; one without a name at the beginning is an index, as pandas writes it."""
    header = [value.strip().lower() for value in values]
    while header and not header[-1]:
        header.pop()
    if header and header[0] in ("", "unnamed: 0"):
        header[0] = "index"
    doubled = sorted({name for name in header if header.count(name) > 1})
    if not all(header) or doubled:
        which = f": {', '.join(doubled)} is there twice" if doubled else ""
        raise InputError(f"{file}, {place}: the columns need names that differ{which}")
    if all(re.fullmatch(r"[-+.\d]+", name) for name in header):
        raise InputError(f"{file}, {place}: the columns need names, and these are numbers")
    return header


def json_lines(file: Path) -> list[Row]:
    """The rows of a file of JSON lines."""
    rows = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            values = parse_json(file, line, f"line {number}")
            if not isinstance(values, dict):
                raise InputError(f"{file}, line {number}: this is no JSON object")
            rows.append(Row(file, f"line {number}", _flat(values)))
    return rows


def _json_rows(file: Path) -> list[Row]:
    """A list of objects, alone or as the one such list of an object, or an object with one for each frame."""
    data = parse_json(file, read_text(file))
    if isinstance(data, dict):
        lists = [v for v in data.values() if isinstance(v, list) and v and all(isinstance(row, dict) for row in v)]
        if len(lists) == 1:
            data = lists[0]
        elif data and all(re.fullmatch(r"\d+", k) and isinstance(v, dict) for k, v in data.items()):
            data = [{"frame": int(k), **v} for k, v in data.items()]
    if not isinstance(data, list) or not all(isinstance(value, dict) for value in data):
        raise InputError(f"{file} should hold a list of objects, one for each frame")
    return [Row(file, f"frame {k}", _flat(value)) for k, value in enumerate(data)]


def _flat(values: dict, before: str = "") -> dict:
    """Nested objects with their names joined by dots: {"camera": {"x": 1}} has camera.x; lists stay, and by number."""
    flat = {}
    for name, value in values.items():
        name = f"{before}{name}".lower()
        flat[name] = value
        if isinstance(value, dict):
            flat |= _flat(value, f"{name}.")
        elif isinstance(value, list):
            flat |= {f"{name}.{k}": v for k, v in enumerate(value) if not isinstance(v, dict | list)}
    return flat
