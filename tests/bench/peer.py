"""Our GRPO steps against those of mlx-lm-lora: same machine, model, prompts, group, tokens, rank and rewards, taking turns.

    python -m tests.bench.peer --model MODEL --out FILE.json [--prompts 4 --group 8 --max-tokens 64 --rounds 2 --steps 1]
    python -m tests.bench.peer --model MODEL --out FILE.json --memory-rows 1,2,4,8

The peer is installed once, with pip, at a pinned version and with our version of mlx, into an environment of its own under the
user's cache. It runs at its default batch_size 1 (the prompts of a step are accumulated one by one) and at batch_size = prompts.
Each round starts a process for ours and one for each setting of the peer; ours makes a step that is not counted and the peer a
batch, and then the timed ones. No completion stops early on either side. Ratios are medians over the rounds; what else the
machine did is noted. With --peer-prompts K the peer at its default makes K prompts of a step, and its figures are scaled to the
whole: it does them one after the other. With --cold nothing goes before the timed steps on either side: of a large model, whose
steps take minutes, that is all that can be waited for, and what it costs is seconds.

The peer updates in micro-batches of batch_size rows, so its memory is compared apart: at each number of rows both sides make one
step of as many prompts, in micro-batches of that many rows, keeping the layers' activations and computing the layers again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from engine import machine_load
from engine.provenance import provenance
from engine.runs import launch
from engine.takehome import asking
from engine.worker import bench_model
from engine.worker.model import Policy
from engine.worker.step import prompts_within

VERSION = "5.10.2"
RESULTS = Path(__file__).parent / "results"
_STEPS = Path(__file__).with_name("peer_steps.py")
OURS, DEFAULT, BEST = "ours", "peer_default", "peer_best"

Side = dict[str, Any]


def environment_of_peer() -> Path:
    """The Python that has the peer, installed where it is not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    mlx = metadata.version("mlx")
    folder = cache / "droid-tune-bench" / f"mlx-lm-lora-{VERSION}-mlx-{mlx}"
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists():
        print(f"installing mlx-lm-lora {VERSION} into {folder}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        backend = f"mlx[cpu]=={mlx}" if sys.platform == "linux" else f"mlx=={mlx}"
        command = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            backend,
            f"mlx-lm-lora=={VERSION}",
        ]
        subprocess.run(command, check=True)
        done.touch()
    return python


def of_peer(python: Path, request: Mapping[str, Any], environment: Mapping[str, str]) -> Side:
    """One process of the peer: the median of its timed steps."""
    own = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), str(_STEPS)], input=json.dumps(request) + "\n", env=own, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the peer failed: {done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    wanted = len(request["prompts"]) * request["group"] * request["max_tokens"]
    if any(step["tokens"] != wanted for step in found["steps"]):
        raise RuntimeError(f"the peer's completions stopped early: {[step['tokens'] for step in found['steps']]} of {wanted}")
    middle = {name: statistics.median(step[name] for step in found["steps"]) for name in found["steps"][0]}
    return {**middle, **{name: value for name, value in found.items() if name.endswith("peak_bytes_above_weights")}}


def scaled(side: Side, times: float) -> Side:
    """A step that is `times` as long: its seconds and tokens. Its peaks are those of its parts."""
    return {name: value if name.endswith("above_weights") else value * times for name, value in side.items()}


async def step_of_ours(request: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """What one worker process of ours tells of its steps."""
    parts: list[dict[str, Any]] = []

    def take(line: asking.Line) -> None:
        if line["event"] == "part":
            parts.append(line["found"])

    await asking.ask("bench", request, environment, take)
    return parts[0]


async def of_ours(request: Mapping[str, Any], environment: Mapping[str, str]) -> Side:
    """One worker process of ours: the median of its timed steps."""
    found = (await step_of_ours(request, environment))["ours"]
    whole, rollout = found["whole"], found["rollout"]
    return {
        "seconds": whole["seconds"],
        "cpu_seconds": whole["cpu_seconds"],
        "rollout_seconds": rollout["seconds"],
        "rollout_cpu_seconds": rollout["cpu_seconds"],
        "tokens": round(rollout["tokens_per_second"] * rollout["seconds"]),
        "peak_bytes_above_weights": whole["peak_bytes_above_weights"],
    }


def summary(rounds: list[dict[str, Side]]) -> dict[str, Any]:
    """Medians of each side, and how many times as fast and as lean ours is: medians of the rounds' ratios."""
    sides = {}
    for side in rounds[0]:
        seconds = statistics.median(one[side]["seconds"] for one in rounds)
        rollout = statistics.median(one[side]["rollout_seconds"] for one in rounds)
        sides[side] = {
            "step_seconds": seconds,
            "rollout_tokens_per_second": rounds[0][side]["tokens"] / rollout,
            "peak_bytes_above_weights": max(one[side]["peak_bytes_above_weights"] for one in rounds),
        }
    names = {
        "rollout": "rollout_seconds",
        "step": "seconds",
        "rollout_by_cpu": "rollout_cpu_seconds",
        "step_by_cpu": "cpu_seconds",
    }
    times = {
        peer: {name: statistics.median(one[peer][key] / one[OURS][key] for one in rounds) for name, key in names.items()}
        for peer in rounds[0]
        if peer != OURS
    }
    return {"sides": sides, "times_as_fast": times}


async def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Every round, and what it comes to."""
    python = environment_of_peer()
    environment = launch.worker_environment(os.environ, {})[0]
    policy = bench_model.load(options.model, options.rank)
    prompts = token_ids(policy, options.prompts, options.prompt_tokens)
    model, folder = bench_model.facts(policy), str(policy.folder)
    del policy
    settings = {name: getattr(options, name) for name in ("prompts", "group", "prompt_tokens", "max_tokens", "rank")}
    few = options.peer_prompts or options.prompts  # of a step of the peer at its default
    own = {**settings, "repeats": options.steps, "bare": False, "warm": not options.cold}
    ours = {"parts": ["step"], "model": folder, "blank": "", "settings": own}
    theirs = {"model": folder, "prompts": prompts, "steps": options.steps, "warm": not options.cold, "grad_checkpoint": False}
    theirs |= {name: settings[name] for name in ("group", "max_tokens", "rank")}
    rounds: list[dict[str, Side]] = []
    found: dict[str, Any] = {}
    start = machine_load.mark()
    for number in range(options.rounds):
        one = {}
        for side in (OURS, DEFAULT, BEST):
            if side == OURS:
                one[side] = await of_ours(ours, environment)
            elif side == DEFAULT:
                part = of_peer(python, {**theirs, "prompts": prompts[:few], "batch_size": 1}, environment)
                one[side] = scaled(part, options.prompts / few)
            else:
                one[side] = of_peer(python, {**theirs, "batch_size": options.prompts}, environment)
            print(f"round {number + 1}, {side}: {json.dumps(one[side])}", file=sys.stderr, flush=True)
        rounds.append(one)
        found = {
            **conditions("peer", model),
            "settings": {
                **settings,
                "rounds": number + 1,
                "steps": options.steps,
                "peer_prompts": few,
                "warm": not options.cold,
            },
            "rounds": rounds,
            **summary(rounds),
            "load": machine_load.since(start).as_dict(),
        }
        save(found, options.out)  # a round of a large model takes many minutes
    return found


async def compare_memory(options: argparse.Namespace) -> dict[str, Any]:
    """The peaks of one step of both sides at each number of rows of a micro-batch, in bytes above the weights."""
    python = environment_of_peer()
    environment = launch.worker_environment(os.environ, {})[0]
    policy = bench_model.load(options.model, options.rank)
    prompts = {rows: token_ids(policy, rows, options.prompt_tokens) for rows in options.memory_rows}
    model, folder = bench_model.facts(policy), str(policy.folder)
    del policy
    settings = {name: getattr(options, name) for name in ("group", "prompt_tokens", "max_tokens", "rank")}
    peer_group = options.peer_group or options.group
    found: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    start = machine_load.mark()
    for rows in options.memory_rows:
        theirs = {"model": folder, "prompts": prompts[rows], "steps": 1, "warm": False, "batch_size": rows}
        theirs |= {"group": peer_group, "max_tokens": options.max_tokens, "rank": options.rank}
        ours = {**settings, "prompts": rows, "micro_batch_rows": rows, "repeats": 1, "warm": False, "bare": False}
        one: dict[str, Any] = {"micro_batch_rows": rows, "prompts": rows}
        for name, again in (("kept", False), ("grad_checkpoint", True)):
            peer = of_peer(python, {**theirs, "grad_checkpoint": again}, environment)
            request = {"parts": ["step"], "model": folder, "blank": "", "settings": {**ours, "grad_checkpoint": again}}
            step = await step_of_ours(request, environment)
            if (step["micro_batch_rows"], step["recomputes"]) != (rows, again):
                raise RuntimeError(f"our step was cut otherwise: {step['micro_batch_rows']} rows, {step['recomputes']}")
            one[name] = {OURS: peaks_of_ours(step), "peer": peaks_of_peer(peer)}
        print(json.dumps(one), file=sys.stderr, flush=True)
        found.append(one)
        result = {
            **conditions("peer-memory", model),
            "settings": {**settings, "peer_group": peer_group},
            "peak_bytes_above_weights": found,
            "load": machine_load.since(start).as_dict(),
        }
        save(result, options.out)
    return result


def peaks_of_ours(step: Mapping[str, Any]) -> dict[str, int]:
    """The peaks of a step of ours by phase, in bytes above the weights."""
    return {name: step["ours"][name]["peak_bytes_above_weights"] for name in ("rollout", "update", "whole")}


def peaks_of_peer(step: Side) -> dict[str, int]:
    """As `peaks_of_ours`; the peer's rewards and their advantages are part of its update."""
    whole = step["peak_bytes_above_weights"]
    return {**{name: step[f"{name}_peak_bytes_above_weights"] for name in ("rollout", "update")}, "whole": whole}


def token_ids(policy: Policy, number: int, tokens: int) -> list[list[int]]:
    """The prompts that the benchmark makes, as the peer takes them."""
    asked = bench_model.prompts(policy, number, tokens)
    return [list(prompt.token_ids) for prompt, _ in prompts_within(policy, asked, tokens)]


def conditions(kind: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, when and on what machine."""
    return {"kind": kind, **provenance(), "peer": f"mlx-lm-lora {VERSION}", "model": model}


def save(found: Mapping[str, Any], path: Path) -> None:
    """The result file, over an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, an HF id on this machine, or demo")
    parser.add_argument("--out", type=Path, required=True, help=f"a file; README is made from those in {RESULTS.name}/")
    defaults = {"prompts": 4, "group": 8, "prompt-tokens": 160, "max-tokens": 64, "rank": 8, "rounds": 2, "steps": 1}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--peer-prompts", type=int, help="of a step of the peer at its default, the rest scaled; all")
    parser.add_argument("--cold", action="store_true", help="no uncounted step before the timed ones, on either side")
    shares_none = (
        "with --memory-rows, of the peer: it computes each row with its own prompt, so that a group of 2 fills a batch, too"
    )
    parser.add_argument("--peer-group", type=int, help=shares_none)
    rows = "compare memory, not speed, at these rows of a micro-batch"
    parser.add_argument("--memory-rows", type=lambda text: [int(part) for part in text.split(",")], help=rows, metavar="N,N")
    options = parser.parse_args()
    if options.peer_prompts is not None and not 1 <= options.peer_prompts <= options.prompts:
        parser.error(f"--peer-prompts: 1 to {options.prompts}, the prompts of a step")
    if min(options.group, options.peer_group or options.group) < 2:
        parser.error("--group, --peer-group: a group of one has no baseline")
    found = asyncio.run(compare_memory(options) if options.memory_rows else compare(options))
    shown = ("peak_bytes_above_weights",) if options.memory_rows else ("sides", "times_as_fast", "load")
    print(json.dumps({name: found[name] for name in shown}, indent=1))


if __name__ == "__main__":
    main()
