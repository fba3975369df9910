"""One module a command. Each has `main`, whose signature and docstring are the command's flags and help.

Modules here import jax and other heavy libraries inside `main`, so that `mgjax COMMAND --help` answers at once.
"""
