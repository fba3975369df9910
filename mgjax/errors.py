"""The one exception that people are meant to read."""


class InputError(Exception):
    """Something that the user gave cannot be used. The message is one clear sentence; commands print it and exit with
    2.
    """
