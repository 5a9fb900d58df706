"""README's figures of speed and memory, from the result files in tests/bench/results/.

    python -m tests.bench.readme [--write README.md]

A result file is what `droid-tune bench [PART] [MODEL] --json` prints (parts of one model go together), or what
`python -m tests.bench.peer`, `method_costs` and `estimates` write (their `kind` tells). Nothing is measured here, and no figure
is typed in.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.machine_load import IDLE_CORES
from tests.bench.marked import write

RESULTS = Path(__file__).parent / "results"
_COSTS = (  # label, unit and part of a row of the costs by length
    ("", "milliseconds_per_token", "whole"),
    (": its update", "milliseconds_per_token", "update"),
    (": attention in it", "milliseconds_per_token", "attention"),
    (": the update without attention", "milliseconds_per_token", "update_apart"),
    (": the same, per token computed", "milliseconds_per_computed_token", "update_apart"),
)
START, END = "<!-- speed tables: written by `python -m tests.bench.readme --write README.md` -->", "<!-- end of speed tables -->"

Result = Mapping[str, Any]


def lines(results: Sequence[Result]) -> list[str]:
    """Markdown: against the bare loop, against the peer, and what watching and recording cost; each where there are results."""
    kinds: dict[str, list[Result]] = {}
    for result in results:
        kinds.setdefault(result.get("kind", "bench"), []).append(result)
    bench, peers = kinds.get("bench", []), kinds.get("peer", [])
    parts = [
        _bare(bench),
        _costs(bench),
        _peers(peers),
        _peer_memory(kinds.get("peer-memory", [])),
        _overhead(bench),
        _conditions([*bench, *peers]),
    ]
    parts += [_methods(result) for result in kinds.get("methods", [])]
    parts += [_estimates(result) for result in kinds.get("estimates", [])]
    return [line for part in parts if part for line in ("", *part)][1:]


def _bare(results: Sequence[Result]) -> list[str]:
    measured = _by_model([result for result in results if "rollout" in result or "step" in result or "sft" in result])
    if not measured:
        return []
    rows = [
        "| ours against the bare loop | decoding, times as fast | whole rollout, times as fast | update, share of its time "
        "| whole step, share of its time | supervised update, share of its time "
        "| gradient apart by | peak memory of the update, ours / bare |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result in measured:
        speed = result.get("rollout", {}).get("speed", {}).get("bare", {})
        step, sft = result.get("step", {}), result.get("sft", {})
        peaks = [step.get(side, {}).get("update", {}).get("peak_bytes_above_weights") for side in ("ours", "bare")]
        rows.append(
            f"| {_model(result)} | {_times(speed.get('decode'))} | {_times(speed.get('whole'))} "
            f"| {_times(step.get('time', {}).get('update'))} | {_times(step.get('time', {}).get('whole'))} "
            f"| {_times(sft.get('time'))} | {_small(step.get('gradient_difference'))} "
            f"| {' / '.join('–' if peak is None else f'{peak / 1e6:,.0f} MB' for peak in peaks)} |"
        )
    return rows


def _by_model(results: Sequence[Result]) -> list[Result]:
    """The parts that were measured one by one, together."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for result in results:
        found.setdefault((_model(result), _settings(result)), {}).update(result)
    return list(found.values())


def _costs(results: Sequence[Result]) -> list[str]:
    measured = [result for result in results if "lengths" in result.get("step", {})]
    lengths = sorted({row["max_tokens"] for result in measured for row in result["step"]["lengths"]})
    if not measured:
        return []
    rows = [
        "| milliseconds of a whole step per completion token, at | "
        + " | ".join(f"{length} tokens" for length in lengths)
        + " |",
        "|---|" + "---:|" * len(lengths),
    ]
    for result in measured:
        for label, key, name in _COSTS:
            found = {row["max_tokens"]: row.get(key, {}).get(name) for row in result["step"]["lengths"]}
            if any(value is not None for value in found.values()):
                rows.append(f"| {_model(result)}{label} | {' | '.join(_times(found.get(length)) for length in lengths)} |")
    return rows


def _peers(results: Sequence[Result]) -> list[str]:
    if not results:
        return []
    rows = [
        f"| model | against {results[0]['peer']} | rollout, times as fast | whole step, times as fast | tokens/s, ours / theirs "
        "| seconds a step, ours / theirs |",
        "|---|---|---:|---:|---:|---:|",
    ]
    named = {"peer_default": "its default, batch_size 1", "peer_best": "batch_size = prompts"}
    for result in results:
        ours = result["sides"]["ours"]
        for peer, times in result["times_as_fast"].items():
            theirs = result["sides"][peer]
            rows.append(
                f"| {_model(result)} | {named[peer]}{_share(result, peer)} "
                f"| {_times(times['rollout'])} | {_times(times['step'])} "
                f"| {ours['rollout_tokens_per_second']:.0f} / {theirs['rollout_tokens_per_second']:.0f} "
                f"| {ours['step_seconds']:.1f} / {theirs['step_seconds']:.1f} |"
            )
    return rows


def _share(result: Result, peer: str) -> str:
    """What of a step the peer made, where it was not the whole, and whether a step came before it."""
    prompts = result["settings"]["prompts"]
    made = result["settings"].get("peer_prompts", prompts)
    said = [f"scaled from {made} of {prompts} prompts"] if peer == "peer_default" and made < prompts else []
    said += ["neither warmed up"] if not result["settings"].get("warm", True) else []
    return f" ({', '.join(said)})" if said else ""


def _peer_memory(results: Sequence[Result]) -> list[str]:
    if not results:
        return []
    rows = [
        f"| model | rows of a micro-batch | update: {results[0]['peer']} | ours | update with `grad_checkpoint`: theirs | ours "
        "| whole step, ours / theirs |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        for found in result["peak_bytes_above_weights"]:
            kept, again = found["kept"], found["grad_checkpoint"]
            cells = [cell for sides in (kept, again) for cell in _peaks(sides["peer"]["update"], sides["ours"]["update"])]
            whole = " / ".join(f"{kept[side]['whole'] / 1e6:,.0f}" for side in ("ours", "peer"))
            rows.append(f"| {_model(result)} | {found['micro_batch_rows']} | {' | '.join(cells)} | {whole} MB |")
    said = results[0]["settings"]
    dates = sorted({result["date"][:10] for result in results})
    fewer = [
        f"; of {_model(result)} theirs are {result['settings']['peer_group']}, as it computes each row with its own prompt"
        for result in results
        if result["settings"].get("peer_group", said["group"]) != said["group"]
    ]
    sentence = (
        "Peak memory above the weights, in brackets ours over theirs. One step of as many prompts as a micro-batch has rows "
        f"(theirs by batch_size, ours by `optim.micro_batch_rows`), {said['group']} completions each{''.join(fewer)}; "
        f"{said['prompt_tokens']} + {said['max_tokens']} tokens, rank {said['rank']}. "
        f"Measured {', '.join(dates)}, {results[0]['machine']['backend']}."
    )
    return [*rows, "", sentence]


def _peaks(theirs: int, ours: int) -> tuple[str, str]:
    return f"{theirs / 1e6:,.0f} MB", f"{ours / 1e6:,.0f} MB ({ours / theirs:.2f})"


def _overhead(results: Sequence[Result]) -> list[str]:
    said = []
    for result in results:
        if "journal" in result:
            said.append(
                f"journal, samples and checkpoints take {100 * result['journal']['share_of_cpu']:.1f}% of a run's CPU time"
            )
        if "app" in result:
            found = result["app"]
            share, seconds = 100 * found["share_of_one_core"], found["step_seconds"]
            beside, without = seconds["with"], seconds["without"]
            said.append(
                f"the app takes {share:.1f}% of one core while it watches, and a step takes {beside / without:.2f} times as long "
                f"({beside:.3f} against {without:.3f} s, medians)"
            )
    return [f"On the demo {'; '.join(said)}."] if said else []


def _methods(result: Result) -> list[str]:
    said = result["settings"]
    rows = [
        f"| a step of {said['rows']} rows, {said['prompt_tokens']} + {said['max_tokens']} tokens, {result['model']} | seconds "
        "| of which rollout / score / update | updates | peak memory | time against sft | memory against sft |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["methods"]:
        parts = " / ".join(_times(row["seconds"].get(name)) for name in ("rollout", "score", "update"))
        beta = f", beta {row['beta']:g}" if row["beta"] else ""
        rows.append(
            f"| {row['method']}{beta} | {row['total']:.2f} | {parts} | {row['updates']} | {row['peak_bytes'] / 1e6:,.0f} MB "
            f"| {row['time']:.2f} | {row['memory']:.2f} |"
        )
    return rows


def _estimates(result: Result) -> list[str]:
    """One sentence: the whole table is in the file."""
    cases = result["cases"]
    held_out = sum(case["held_out"] for case in cases)
    return [
        f"The estimate was held against {len(cases)} configs of four models (LoRA, DoRA, full; groups, lengths, micro-batches, "
        f"a KL term, layers computed again; {held_out} of a family that nothing was adjusted to). The peak is within 10% of "
        f"mlx's own counter for {result['near']}, the furthest under by {-100 * result['furthest_under']:.0f}%. A step's time is "
        f"within 25% for {result['in_time']} after one measured step, for {result['in_time_cold']} before any "
        "(`python -m tests.bench.estimates`)."
    ]


def _conditions(results: Sequence[Result]) -> list[str]:
    if not results:
        return []
    machines = sorted(
        {f"{result['machine']['chip']}, {result['machine']['cores']} cores, {result['machine']['backend']}" for result in results}
    )
    settings = sorted({_settings(result) for result in results if "model" in result})
    loads = [load for result in results for load in _loads(result)]
    busiest = max((load["others_cores"] for load in loads if load["others_cores"] is not None), default=None)
    if busiest is None:
        load = "what else ran there is not known"
    elif busiest <= IDLE_CORES:
        load = "nothing else ran there"
    else:
        load = f"other work took up to {busiest:.1f} cores meanwhile: trust the CPU-time ratios, which the result files hold"
    dates = sorted({result["date"][:10] for result in results})
    ratios = (
        "Times as fast and shares are medians of the ratios of neighbouring passes or rounds; seconds and tokens/s are each "
        "side's own medians, so that their quotient may differ a little."
    )
    return [
        f"Measured {', '.join(dates)} on {'; '.join(machines)}: {'; '.join(settings)}. {load[0].upper()}{load[1:]}. {ratios}"
    ]


def _loads(result: Result) -> list[Mapping[str, Any]]:
    parts = [result, *(result[part] for part in ("rollout", "step", "sft", "journal", "app") if part in result)]
    return [part["load"] for part in parts if "load" in part]


def _settings(result: Result) -> str:
    found = result["settings"]
    return (
        f"{found['prompts']} prompts x {found['group']} completions, {found['prompt_tokens']} + {found['max_tokens']} tokens, "
        f"rank {found['rank']}"
    )


def _model(result: Result) -> str:
    model = result["model"]
    name = "random" if model.get("name", "").startswith("random") or model["folder"] == "bench-4m" else model["folder"]
    return f"{name}, {model['parameters'] / 1e6:.0f} M, {model['dtype']}"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _small(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}"


def read(folder: Path) -> list[Result]:
    """The result files, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    made = lines(read(RESULTS))
    print("\n".join(made))
    if options.write is not None:
        write(options.write, START, END, made)


if __name__ == "__main__":
    main()
