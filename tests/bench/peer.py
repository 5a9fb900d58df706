"""Our GRPO steps against those of mlx-lm-lora: same machine, model, prompts, group, tokens, rank and rewards, taking turns.

    python -m tests.bench.peer --model MODEL --out FILE.json [--prompts 4 --group 8 --max-tokens 64 --rounds 2 --steps 1]

The peer is installed once, with pip, at a pinned version and with our version of mlx, into an environment of its own under the
user's cache. It runs at its default batch_size 1 (the prompts of a step are accumulated one by one) and at batch_size = prompts.
Each round starts a process for ours and one for each setting of the peer; each makes a step that is not counted and then the
timed ones. No completion stops early on either side. Ratios are medians over the rounds; what else the machine did is noted.
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
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from engine import hardware, machine_load
from engine.runs import launch
from engine.takehome import asking
from engine.worker import bench_model
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
    return {**middle, "peak_bytes_above_weights": found["peak_bytes_above_weights"]}


async def of_ours(request: Mapping[str, Any], environment: Mapping[str, str]) -> Side:
    """One worker process of ours: the median of its timed steps."""
    parts: list[dict[str, Any]] = []

    def take(line: asking.Line) -> None:
        if line["event"] == "part":
            parts.append(line["found"])

    await asking.ask("bench", request, environment, take)
    whole, rollout = parts[0]["ours"]["whole"], parts[0]["ours"]["rollout"]
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
    asked = bench_model.prompts(policy, options.prompts, options.prompt_tokens)
    prompts = [list(prompt.token_ids) for prompt, _ in prompts_within(policy, asked, options.prompt_tokens)]
    model, folder = bench_model.facts(policy), str(policy.folder)
    del policy
    settings = {name: getattr(options, name) for name in ("prompts", "group", "prompt_tokens", "max_tokens", "rank")}
    ours = {"parts": ["step"], "model": folder, "blank": "", "settings": {**settings, "repeats": options.steps, "bare": False}}
    theirs = {"model": folder, "prompts": prompts, "steps": options.steps}
    theirs |= {name: settings[name] for name in ("group", "max_tokens", "rank")}
    rounds = []
    start = machine_load.mark()
    for number in range(options.rounds):
        one = {}
        for side, batch in ((OURS, 0), (DEFAULT, 1), (BEST, options.prompts)):
            if side == OURS:
                one[side] = await of_ours(ours, environment)
            else:
                one[side] = of_peer(python, {**theirs, "batch_size": batch}, environment)
            print(f"round {number + 1}, {side}: {json.dumps(one[side])}", file=sys.stderr, flush=True)
        rounds.append(one)
    load = machine_load.since(start)
    known = hardware.facts()
    return {
        "kind": "peer",
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "peer": f"mlx-lm-lora {VERSION}",
        "machine": {"chip": known.chip, "cores": known.cores, "backend": known.backend, "memory_bytes": known.memory_bytes},
        "versions": dict(known.versions),
        "model": model,
        "settings": {**settings, "rounds": options.rounds, "steps": options.steps},
        "rounds": rounds,
        **summary(rounds),
        "load": load.as_dict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, an HF id on this machine, or demo")
    parser.add_argument("--out", type=Path, required=True, help=f"a file; README is made from those in {RESULTS.name}/")
    defaults = {"prompts": 4, "group": 8, "prompt-tokens": 160, "max-tokens": 64, "rank": 8, "rounds": 2, "steps": 1}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    found = asyncio.run(compare(options))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"sides": found["sides"], "times_as_fast": found["times_as_fast"], "load": found["load"]}, indent=1))


if __name__ == "__main__":
    main()
