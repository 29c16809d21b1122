"""Errors that a user can act on."""


class FastwmError(Exception):
    """An error the user can act on: the CLI prints it on one line and exits with code 2."""
