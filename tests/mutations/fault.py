"""A deliberate fault: one edit of the product's source, and the test that has to go red with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Fault:
    """`old` occurs exactly once in `file` and becomes `new`; then `test`, which passes without the fault, has to fail."""

    name: str
    why: str  # the mistake of the field that it stands for
    file: str  # relative to the repository
    old: str
    new: str
    test: str  # a pytest node id; without a [parameter] all of them are run, up to the first that fails

    def faulty(self, source: str) -> str:
        """`source` with the fault. Raises ValueError where the snippet does not occur exactly once."""
        found = source.count(self.old)
        if found != 1:
            raise ValueError(f"fault {self.name}: its snippet occurs {found} times in {self.file}, not once")
        return source.replace(self.old, self.new)

    def problem(self, root: Path) -> str | None:
        """What is out of date about the fault in the repository `root`, or None; the test is looked for by its name alone."""
        try:
            self.faulty((root / self.file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return str(error)
        file, _, name = self.test.partition("::")
        path = root / file
        function = name.partition("[")[0]
        if not path.is_file() or f"def {function}(" not in path.read_text(encoding="utf-8"):
            return f"fault {self.name}: there is no test {file}::{function}"
        return None
