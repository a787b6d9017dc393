"""The errors a user can cause or meet.

Each carries one line that says what is wrong, where, what is allowed and what to do. The command line
prints that line and exits with the class's code; nothing else is ever shown for a user's mistake.
"""


class RectuneError(Exception):
    """Base of every error that is reported to the user as one line."""

    exit_code = 1
    shared = False
    """Whether all processes of a run have met it, so that the main one says it."""


class ConfigError(RectuneError):
    """A configuration, an option or a combination of them that cannot work."""

    exit_code = 2


class DataError(RectuneError):
    """Input data that is missing, unreadable or unusable."""

    exit_code = 3


class ModelError(RectuneError):
    """A model, tokenizer or adapter that is missing, damaged or unfit for the task."""

    exit_code = 4


class NotFinite(ModelError):  # noqa: N818
    """Scores, a loss or a gradient that are not finite numbers."""


class ResourceError(RectuneError):
    """Too little of something the machine has to give: memory, disk, network, an optional package."""

    exit_code = 5


class PeerFailed(RectuneError):  # noqa: N818
    """Another process of this run has failed and has said why; its exit code is taken over."""
