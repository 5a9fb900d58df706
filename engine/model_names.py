"""What `model` may say beside a path and `demo`: a model's name, `owner/name`, with `@` a branch, tag or commit of the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class ModelId:
    """A model's name. LM Studio's folders have such names too, without revisions."""

    repo: str  # owner/name
    revision: str = ""  # a branch, a tag or a commit; empty: what the repository's main branch has

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    @property
    def commit(self) -> str:
        """The commit that the name fixes; empty for a branch or a tag, which may move."""
        return self.revision if _COMMIT.fullmatch(self.revision) else ""


def model_id(text: str) -> ModelId | None:
    """The name that `text` is; None for what can only be a path."""
    match = _NAME.fullmatch(text)
    return None if match is None or match["repo"].lower().endswith(".gguf") else ModelId(match["repo"], match["revision"] or "")


def plain(model: str) -> str:
    """A config's `model` as people write it: without the commit that a run adds to a name."""
    found = model_id(model)
    return found.repo if found is not None and found.commit else model
