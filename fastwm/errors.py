"""Errors that a user can act on."""


class FastwmError(Exception):
    """An error the user can act on: the CLI prints it on one line and exits with `code`."""

    code = 2


class Misfit(FastwmError):
    """A checkpoint's weights have other shapes than the agent's."""


class Interrupted(FastwmError):
    """The user asked for an end, and there is something to say."""

    code = 130
