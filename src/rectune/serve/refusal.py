"""Questions that are not answered."""

from __future__ import annotations


class Refused(Exception):  # noqa: N818
    """A question that is not answered, with the status that says so.

    Attributes:
        status: of HTTP.
        after: seconds after which it may be asked again; None where it is not known.
    """

    def __init__(self, status: int, line: str, after: int | None = None) -> None:
        super().__init__(line)
        self.status, self.after = status, after
