"""Exports, from outside the worker: prepared aside, written by one worker, read back by another, compared, named. All or nothing.

A run may be training: its folder is read only, and its lock is not touched.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine import cache_folders, methods
from engine import config as configs
from engine.config import RunConfig
from engine.errors import InputError
from engine.model_names import plain
from engine.models.places import lm_studio_folders
from engine.runs import launch, record
from engine.runs.record import RunRecord
from engine.runs.state import RunState
from engine.takehome import asking, card
from engine.takehome.choice import Chosen
from engine.takehome.generate import folded, is_plain_text, opening
from engine.takehome.kinds import EIGHT_BITS, EXACT, HALF, Difference, Exported, Job
from engine.use_command import chat_options

PROVENANCE = "droid-tune.json"  # in every export: what it is of; what has it may be replaced by another export
PUBLISHER = "droid-tune"  # the folder of LM Studio under which its models are listed
_PROMPT = "YOUR PROMPT"
_NO_ADAPTER = (
    "the run added tokens to the model: mlx_lm's adapter layout has no place for their rows, and its base's tokenizer would read "
    "them in pieces"
)
_INSTEAD = "use --to fused (or lmstudio, gguf); to train on from it: adapter.start_from: {}"
# what one worker says for the other
ABOUT = ("model", "quantize", "tokens", "chat", "stops", "added", "added_tokens", "own_chat")

OnPhase = Callable[[str, int, int], None]


async def export(
    found: RunRecord,
    jobs: Sequence[Job],
    checkpoint: str = "best",
    on_phase: OnPhase = lambda name, done, total: None,
    *,
    program: Sequence[str] = launch.WORKER,
) -> list[Exported]:
    """Every job of the run's adapter that `checkpoint` (best, last or a step) names. Raises InputError, also where an export is
    not what the run's own policy is, and leaves nothing behind then or when it is cancelled."""
    for job in jobs:
        job.check()
    jobs = [replace(job, out=job.out.absolute()) for job in jobs]
    if len({job.out for job in jobs}) < len(jobs):
        raise InputError("two exports would be one folder", where=str(jobs[0].out), remedy="give each an --out of its own")
    config = configs.load(found.config_file).config
    if config.chat.add_tokens and any(job.kind == "adapter" for job in jobs):
        raise InputError(_NO_ADAPTER, where="--to adapter", remedy=_INSTEAD.format(found.adapters_dir))
    chosen, request, environment = await asyncio.to_thread(opening, found, checkpoint)
    left = [line for job in jobs for line in _cleared(job.out)]
    for job in jobs:
        _check_target(job)
    with ExitStack() as stack:
        asides = [stack.enter_context(_aside(job.out)) for job in jobs]
        probe = stack.enter_context(_aside(jobs[0].out))
        heard = _Heard(on_phase)
        descends = methods.method(config.method).kind == "sft"
        request |= {"step": chosen.step, "descends": descends, "probe": str(probe / "probe.safetensors")}
        request["jobs"] = [_request(job, aside, found.id) for job, aside in zip(jobs, asides, strict=True)]
        await asking.ask("export", request, environment, heard, program=program)
        await asking.ask("verify", _verifying(request, heard, probe), environment, heard, program=program)
        state = await asyncio.to_thread(folded, found)
        made = [
            _judged(job, heard, number, state, config, chosen, aside)
            for number, (job, aside) in enumerate(zip(jobs, asides, strict=True))
        ]
        for each, aside in zip(made, asides, strict=True):
            _describe(each, aside, found, config, state, heard.done["held_out"])
            on_phase("bringing it to the disk", 0, 0)
            await asyncio.to_thread(_sync, aside)
        for job in jobs:
            _check_target(job)  # it may have been made meanwhile, by another export or by the user
        for job, aside in zip(jobs, asides, strict=True):
            _name(aside, job.out)
    return [replace(each, notes=(*each.notes, *left)) if each is made[0] else each for each in made]


def default_out(kind: str, run_id: str, here: Path) -> Path:
    """Where an export goes without --out. InputError for LM Studio where that has no folder."""
    return lmstudio_models() / PUBLISHER / run_id if kind == "lmstudio" else here / f"{run_id}-{kind}"


def lmstudio_models() -> Path:
    """The folder in which LM Studio looks for models. Raises InputError where there is none."""
    folders = lm_studio_folders()
    found = next((folder for folder in folders if folder.parent.is_dir()), None)
    if found is None:
        remedy = "start LM Studio once, so that it makes its folder, or name one: --out FOLDER/PUBLISHER/NAME"
        raise InputError("LM Studio has no folder on this machine", where=str(folders[0].parent), remedy=remedy)
    return found


class _Heard:
    """What the workers said."""

    def __init__(self, on_phase: OnPhase) -> None:
        self._on_phase = on_phase
        self.written: dict[int, dict[str, Any]] = {}
        self.compared: dict[int, dict[str, Any]] = {}
        self.done: dict[str, Any] = {}

    def __call__(self, line: asking.Line) -> None:
        if line["event"] == "phase":
            self._on_phase(line["name"], line.get("done", 0), line.get("total", 0))
        elif line["event"] == "done":
            self.done = line
        else:
            (self.written if line["event"] == "written" else self.compared)[line["job"]] = line


def _request(job: Job, aside: Path, name: str) -> dict[str, Any]:
    """The job for a worker, to which LM Studio's folder is one like another."""
    kind = "fused" if job.kind == "lmstudio" else job.kind
    settings = {"bits": job.bits, "group_size": job.group_size, "dequantize": job.dequantize}
    return {"kind": kind, "folder": str(aside), "name": name, **settings}


def _verifying(request: Mapping[str, Any], heard: _Heard, probe: Path) -> dict[str, Any]:
    jobs = [
        {**job, "file": heard.written[number].get("file"), "cache": str(probe / "models")}
        for number, job in enumerate(request["jobs"])
    ]
    return {"probe": request["probe"], "jobs": jobs, **{key: heard.done[key] for key in ABOUT}}


def _judged(job: Job, heard: _Heard, number: int, state: RunState, config: RunConfig, chosen: Chosen, aside: Path) -> Exported:
    """The export, where it is what it should be. Raises InputError."""
    written, compared = heard.written[number], heard.compared[number]
    difference = Difference(**compared["difference"])
    reload = None if compared["reload"] is None else Difference(**compared["reload"])
    judged = difference if reload is None else reload
    limit = EXACT if written["dtype"] == "float32" else HALF
    if job.kind == "gguf" and written["quantization"] is not None:
        limit = EIGHT_BITS
    if reload is not None:
        limit = EXACT
    if not judged.kl_90 <= limit:  # NaN, too
        what = (
            f"what was written is not the run's policy: {card.said(judged)}, and of nine tokens in ten up to {judged.kl_90:.3g} "
            f"where {limit:g} is allowed; it was removed"
        )
        remedy = (
            "`droid-tune doctor --selftest` checks this machine's numerics; with none wrong there, report this to the project"
        )
        raise InputError(what, where=str(job.out), remedy=remedy)
    return Exported(
        kind=job.kind,
        out=job.out,
        checkpoint=chosen.name,
        step=chosen.step,
        bytes=sum(path.stat().st_size for path in aside.iterdir()),
        files=tuple(sorted({*(path.name for path in aside.iterdir()), "README.md", PROVENANCE})),
        quantization=written["quantization"],
        difference=difference,
        reload=reload,
        command=_command(job, config, heard.done["model"], written, is_plain_text(state)),
        notes=tuple(_notes(job, config, chosen)),
    )


def _notes(job: Job, config: RunConfig, chosen: Chosen) -> Iterator[str]:
    if chosen.name == "best" and chosen.step == 0:
        yield "No evaluation was better than the one before step 1: this is the base model; --checkpoint last is trained."
    if config.chat.add_tokens:
        yield f"It has tokens that its base has not, each one id: {', '.join(config.chat.add_tokens)}."
    if job.kind != "adapter":
        return
    if config.quantize.bits is not None:
        yield (
            f"The run quantised its base to {config.quantize.bits} bits while loading it; mlx_lm loads the base as it is, and "
            "the difference above is what that changes. --to fused takes home what was trained."
        )
    if config.chat.template is not None:
        yield "The run rendered its prompts with another chat template than the model's own; --to fused carries it."


def _command(job: Job, config: RunConfig, model: str, written: Mapping[str, Any], is_text: bool) -> str:
    """The command that uses it; an id of the hub stands for the base where the run was given one."""
    base = plain(config.model) if config.model != "demo" and not Path(config.model).is_absolute() else model
    if job.kind == "gguf":
        return shlex.join(["llama-cli", "-m", str(job.out / written["file"]), *(["-no-cnv"] if is_text else []), "-p", _PROMPT])
    parts = ["--model", str(job.out)]
    if job.kind == "adapter":
        parts = ["--model", base, "--adapter-path", str(job.out), *chat_options(config.chat)]
    parts += ["--ignore-chat-template"] if is_text else ["--system-prompt", config.data.system] if config.data.system else []
    return shlex.join(["mlx_lm.generate", *parts, "--prompt", _PROMPT])


def _describe(
    made: Exported, aside: Path, found: RunRecord, config: RunConfig, state: RunState, held_out: Mapping[str, Any] | None
) -> None:
    """The model card, and the same for programs."""
    told = card.Told(found.id, config, state, made, held_out)
    tree = {**made.as_dict(), "run": found.id, "base": card.base_name(config), "method": config.method, "held_out": held_out}
    with _writing(aside):
        (aside / "README.md").write_text(card.card(told), encoding="utf-8")
        (aside / PROVENANCE).write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_target(job: Job) -> None:
    """InputError where `out` is taken: by anything without --force, and with it by anything but an earlier export."""
    out = job.out
    if not (out.exists() or out.is_symlink()):
        return
    if not job.force:
        raise InputError("is there already", where=str(out), remedy="--force replaces an earlier export; or give another --out")
    if not out.is_dir() or out.is_symlink() or (any(out.iterdir()) and not (out / PROVENANCE).is_file()):
        what = f"is no earlier export (it has no {PROVENANCE}), so it is not replaced"
        raise InputError(what, where=str(out), remedy="give another --out, or remove it yourself")


def _cleared(out: Path) -> list[str]:
    """Remove what killed exports to the same place have left, and say so."""
    if not out.parent.is_dir():
        return []
    with _writing(out.parent):
        left = cache_folders.clear(out.parent, out.name)
    return [
        f"Removed what an export that was killed had left here: {path.name}."
        for path in left
        if not path.name.endswith(cache_folders.OLD)
    ]


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A new folder beside the one to come; gone afterwards, unless it was renamed."""
    missing = [parent for parent in out.parents if not parent.exists()]
    with ExitStack() as stack:
        try:
            with _writing(out.parent):
                folder = stack.enter_context(cache_folders.aside(out.parent, out.name))
            yield folder
        finally:
            stack.close()
            for parent in missing:  # the deepest first; those that are in use by now stay
                with suppress(OSError):
                    parent.rmdir()


def _name(made: Path, out: Path) -> None:
    """Give the folder its name; an earlier export goes once the new one is in its place."""
    old = made.with_name(f"{made.name}{cache_folders.OLD}")
    with _writing(out):
        if out.exists():
            os.rename(out, old)
        try:
            os.rename(made, out)
        except BaseException:  # also an impatient ctrl+c: what was there before stays
            if old.exists():
                os.rename(old, out)
            raise
        record.sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    with _writing(folder):
        for path in folder.iterdir():
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        record.sync_folder(folder)


@contextmanager
def _writing(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "free the disk, or give an --out that is yours"
        raise InputError(f"cannot be written: {error.strerror}", where=str(error.filename or where), remedy=remedy) from error
