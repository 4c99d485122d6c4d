"""The one kind of error a caller can cause, an argument that cannot be used, and training that went astray."""

from __future__ import annotations

from collections.abc import Iterable


class InvalidArgument(ValueError):
    """An argument that cannot be used; the message names it and says what was expected.

    The command line prints the message as one line and exits with status 2.
    """

    def __init__(self, argument: str, expected: str, got: object = None) -> None:
        self.argument = argument
        message = f"{argument} must be {expected}"
        super().__init__(message if got is None else f"{message}, got {got}")


class UnknownName(InvalidArgument):
    """A name that is not among the known ones; the message lists those."""

    def __init__(self, argument: str, name: object, known: Iterable[str]) -> None:
        super().__init__(argument, "one of " + ", ".join(known), repr(name))


def check_at_least(least: float, **arguments: float) -> None:
    """Refuse arguments that are less than ``least``, or no numbers."""
    for name, value in arguments.items():
        if not value >= least:
            raise InvalidArgument(name, f"at least {least:g}", value)


class UnreadableImage(InvalidArgument):
    """A file that was asked for by name and is not a readable image."""

    def __init__(self, path: object, why: str) -> None:
        super().__init__(str(path), "a readable image", why)


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number, or exploded; the last good checkpoint was kept."""
