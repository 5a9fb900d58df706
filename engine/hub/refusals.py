"""Asking the hub, and what can go wrong on the way: each in plain words, with what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from typing import Literal

import httpx2
from huggingface_hub import constants, errors
from huggingface_hub.utils import logging

from engine.errors import InputError
from engine.hub import ONLINE

Kind = Literal["dataset", "model"]
_NOUNS: dict[Kind, str] = {"dataset": "data set", "model": "model"}
_ABSENT: dict[Kind, str] = {
    "dataset": "is no path here and not on this machine as a whole",
    "model": "is neither a folder nor a model on this machine as a whole",
}

_NO_ANSWER = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.CachedRepoTreeNotFoundError, httpx2.HTTPError)


def page(kind: Kind, repo: str) -> str:
    """The address of a repository's page."""
    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"


@contextmanager
def asking(kind: Kind, repo: str, revision: str, where: str) -> Iterator[None]:
    """Inside, the hub may be asked, and whatever it or the way to it refuses becomes one InputError at `where`."""
    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)  # its warnings would be written to the terminal
    offline = constants.HF_HUB_OFFLINE
    if os.environ.get(ONLINE) == "online":
        constants.HF_HUB_OFFLINE = False
    try:
        yield
    except errors.HFValidationError as error:
        raise InputError(f"no {_NOUNS[kind]} has such a name: {error}", where=where, remedy="write owner/name") from error
    except (httpx2.HTTPError, OSError, errors.CachedRepoTreeNotFoundError, RuntimeError) as error:  # hf_xet raises the last
        raise _refusal(error, kind, repo, revision, where) from error
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.set_verbosity(before)


def _refusal(error: Exception, kind: Kind, repo: str, revision: str, where: str) -> InputError:
    site, noun = constants.ENDPOINT, _NOUNS[kind]
    if isinstance(error, errors.GatedRepoError):
        remedy = f"accept its terms at {page(kind, repo)}, then `hf auth login` (or set HF_TOKEN)"
        return InputError("is gated: its owner grants access", where=where, remedy=remedy)
    if isinstance(error, errors.RepositoryNotFoundError):
        what = f"is no file or folder here, and {site} has no such {noun}, or a private one"
        return InputError(what, where=where, remedy="check the name; for a private one `hf auth login` (or set HF_TOKEN)")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"has no revision {revision!r}", where=where, remedy=f"see {page(kind, repo)}/tree/main")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        remedy = "`hf auth login` (or set HF_TOKEN) with a token that may read it" if status in (401, 403) else "try again later"
        return InputError(f"{site} refuses it with status {status}", where=where, remedy=remedy)
    if isinstance(error, _NO_ANSWER):
        if constants.is_offline_mode():
            return InputError(
                f"{_ABSENT[kind]}, and HF_HUB_OFFLINE is set", where=where, remedy=f"unset it, or fetch the {noun} first"
            )
        remedy = "connect, or check HF_ENDPOINT; what has come is kept, and what is whole is used without a network"
        return InputError(f"{_ABSENT[kind]}, and {site} does not answer", where=where, remedy=remedy)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError("the disk is full", where=constants.HF_HUB_CACHE, remedy="free it, or point HF_HOME at another one")
    return InputError(f"cannot be fetched: {' '.join(str(error).split())[:200]}", where=where, remedy="try again")
