"""The one kind of error that a user can cause: it says what is wrong, where, and what to do."""

from __future__ import annotations


class InputError(Exception):
    """Bad input of any kind: a file, a row, a key, a command.

    `what` is wrong, `where` it is (a path, a line, a key) and `remedy` is the next thing to do. The command line prints
    the three parts and exits with code 2; nothing half-written is left behind.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f" ({self.remedy})" if self.remedy else ""
        return f"{place}{self.what}{remedy}"

    def as_dict(self) -> dict[str, str]:
        """The parts by name, for `--json`."""
        return {"error": self.what, "where": self.where, "remedy": self.remedy}
