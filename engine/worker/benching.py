"""The verb `bench`: rollouts, steps and supervised updates against the bare loop, and what keeping a record costs a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.worker import bench_model
from engine.worker.bench_journal import journal
from engine.worker.bench_model import Settings
from engine.worker.bench_rollout import rollout
from engine.worker.bench_sft import sft
from engine.worker.bench_step import step
from engine.worker.bench_timing import Told
from engine.worker.model import Policy

Tell = Callable[[dict[str, Any]], None]
_ON_MODEL: Mapping[str, Callable[[Policy, Settings, Told], dict[str, Any]]] = {"rollout": rollout, "step": step, "sft": sft}


def bench(request: Mapping[str, Any], tell: Tell) -> None:
    """Tells {"event": "model", ...} where a part needs one, {"event": "progress", "part", "text"} and, for each part as it is
    done, {"event": "part", "part", "found"}.

    The request: `parts`, `model` (null: the random one, kept in the folder `blank`) and `settings`. Raises InputError.
    """
    settings = Settings(**{**request["settings"], "lengths": tuple(request["settings"].get("lengths", ()))})
    wanted = list(request["parts"])

    def told(part: str) -> Told:
        return lambda text: tell({"event": "progress", "part": part, "text": text})

    on_model = [part for part in wanted if part in _ON_MODEL]
    if on_model:
        told(on_model[0])("loading")
        model = request["model"] or str(bench_model.blank_folder(Path(request["blank"])))
        policy = bench_model.load(model, settings.rank)
        tell({"event": "model", "model": bench_model.facts(policy)})
        for part in on_model:
            tell({"event": "part", "part": part, "found": _ON_MODEL[part](policy, settings, told(part))})
        del policy
    if "journal" in wanted:
        tell({"event": "part", "part": "journal", "found": journal(settings.steps, told("journal"))})
