"""The exceptions that people are meant to read."""


class InputError(ValueError):
    """Something that the user gave cannot be used. The message is one clear sentence; commands print it and exit with
    2.
    """


class NotFiniteError(InputError):
    """A stream's frames are no numbers any more: its weights or its state are damaged."""
