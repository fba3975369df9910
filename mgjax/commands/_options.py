"""Options of engines and agents on a command line: NAME=VALUE, the value in JSON."""

from __future__ import annotations

import json
from typing import Annotated

import tyro

from mgjax.errors import InputError

Options = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]  # one a flag: of lists the last would count alone


def parse(pairs: Options) -> dict[str, object]:
    """Names and values; text that is no JSON is taken as it is.

    Raises:
      InputError: an option is not NAME=VALUE, or is given twice.
    """
    options: dict[str, object] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InputError(f"the option {pair!r} should be NAME=VALUE")
        if name in options:
            raise InputError(f"the option {name} is given twice")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        options[name] = tuple(value) if isinstance(value, list) else value
    return options
