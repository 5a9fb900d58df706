"""Data sets of the Hugging Face hub, fetched into its own cache: only the files of the split that is wanted, and once.

How files are fetched, and what the cache keeps: engine/hub/. Left out: streaming, and programs that make data (loading scripts).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from engine.data import hub_layout
from engine.data.files import OnProgress, ending
from engine.data.hub_layout import CARD
from engine.data.parquet_rows import require_package
from engine.data_names import HubId
from engine.errors import InputError
from engine.hub.fetching import fetch
from engine.hub.refusals import asking
from engine.hub.repository import repository


@dataclass(frozen=True, slots=True)
class Found:
    """Files of a data set on this machine. `id` names them in full: configuration, commit and split."""

    id: HubId
    path: Path  # with a * for several files, and with the rows that the id names


def require(wanted: HubId, kind: str, on_progress: OnProgress | None = None) -> Found:
    """As `find`; InputError where there is no such split, too."""
    found = find(wanted, kind, on_progress)
    if found is None:
        remedy = f"name another split, as in {wanted.repo}#train, or leave it out"
        raise InputError(f"has no {kind} split", where=str(wanted), remedy=remedy)
    return found


def find(wanted: HubId, kind: str, on_progress: OnProgress | None = None) -> Found | None:
    """The files of the split that `wanted` names, else of its `kind` (train, valid, test), fetched where they are not here.

    None for a valid or test split that is not there. `on_progress` gets the bytes that are here and those of all files, while
    some are fetched. InputError where the data set cannot be had: not there, not for this user, no network, no space, or files
    that are not as they are listed.
    """
    with asking("dataset", wanted.repo, wanted.revision, str(wanted)):
        there = repository("dataset", wanted.repo, wanted.revision, CARD)
        card = there.folder / CARD
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        chosen = hub_layout.choose(list(there.files), text, wanted, kind)
        if chosen is None:
            return None
        found, pattern = chosen
        if ending(pattern) == ".parquet":
            require_package(str(wanted), "hub")
        fetch(there, [name for name in there.files if hub_layout.fits(name, pattern)], on_progress)
    return Found(replace(found, revision=there.commit), Path(f"{there.folder / pattern}{wanted.rows or ''}"))
