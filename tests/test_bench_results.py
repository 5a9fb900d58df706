"""The benchmark's result files: what is made of the peer's rounds, and README's tables of all of them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench import peer, readme


def side(seconds: float, rollout: float) -> dict[str, float]:
    cpu = {"cpu_seconds": 2 * seconds, "rollout_cpu_seconds": rollout}
    return {"seconds": seconds, "rollout_seconds": rollout, "tokens": 100, "peak_bytes_above_weights": 3_000_000, **cpu}


def test_the_peer_is_compared_round_by_round() -> None:
    """Steps 8/1, 9/3, 8/2: the median of 8, 3 and 4 is 4. Rollouts 4/1 in two rounds of three: 4, and 100 tokens in 1 s."""
    rounds = [
        {"ours": side(1, 1), "peer_default": side(8, 4)},
        {"ours": side(3, 1), "peer_default": side(9, 4)},
        {"ours": side(2, 1), "peer_default": side(8, 6)},
    ]
    found = peer.summary(rounds)
    assert found["times_as_fast"]["peer_default"]["step"] == found["times_as_fast"]["peer_default"]["step_by_cpu"] == 4
    assert found["times_as_fast"]["peer_default"]["rollout"] == 4
    assert found["sides"]["ours"] == {"step_seconds": 2, "rollout_tokens_per_second": 100, "peak_bytes_above_weights": 3_000_000}


def test_a_part_of_the_peers_step_is_scaled_and_its_peaks_are_not() -> None:
    """One prompt of four: 2 s and 25 tokens are 8 s and 100 tokens, and 3 MB stay 3 MB."""
    part = {"seconds": 2.0, "tokens": 25, "peak_bytes_above_weights": 3, "update_peak_bytes_above_weights": 2}
    whole = {"seconds": 8.0, "tokens": 100, "peak_bytes_above_weights": 3, "update_peak_bytes_above_weights": 2}
    assert peer.scaled(part, 4) == whole
    assert peer.peaks_of_peer({**part, "rollout_peak_bytes_above_weights": 3}) == {"rollout": 3, "update": 2, "whole": 3}


def test_readme_is_made_of_the_results(tmp_path: Path) -> None:
    common = {
        "date": "2026-11-22T16:30:00+01:00",
        "machine": {"chip": "Apple M2", "cores": 8, "backend": "metal"},
        "settings": {"prompts": 4, "group": 8, "prompt_tokens": 160, "max_tokens": 64, "rank": 8},
        "model": {"name": "small", "folder": "small", "parameters": 135e6, "dtype": "float32"},
        "revision": "2f33879",
        "load": {"others_cores": 0.05},
    }
    # the windows' own ratios may have another median: it is not what the seconds beside it say
    app = {"share_of_one_core": 0.024, "step_seconds": {"with": 0.4459, "without": 0.4392}, "slowdown": 1.066}
    times = {"rollout": 9.5, "step": 6.25}
    sides = {
        name: {"rollout_tokens_per_second": 100, "step_seconds": 2, "peak_bytes_above_weights": 5e6}
        for name in ("ours", "peer_best")
    }
    (tmp_path / "peer-small.json").write_text(
        json.dumps(
            {**common, "kind": "peer", "peer": "mlx-lm-lora 5.10.2", "times_as_fast": {"peer_best": times}, "sides": sides}
        )
    )
    peaks = {"peer": {"update": 80e6, "whole": 90e6}, "ours": {"update": 60e6, "whole": 99e6}}
    again = {"peer": {"update": 50e6}, "ours": {"update": 20e6}}
    by_rows = [{"micro_batch_rows": 2, "kept": peaks, "grad_checkpoint": again}]
    memory = {**common, "kind": "peer-memory", "peer": "mlx-lm-lora 5.10.2", "peak_bytes_above_weights": by_rows}
    (tmp_path / "peer-memory-small.json").write_text(json.dumps(memory))
    scaled = {**common, "kind": "peer", "peer": "mlx-lm-lora 5.10.2", "times_as_fast": {"peer_default": times}}
    scaled |= {"sides": {**sides, "peer_default": sides["ours"]}, "settings": {**common["settings"], "peer_prompts": 1}}
    (tmp_path / "peer-scaled.json").write_text(json.dumps(scaled))
    costs = [{"max_tokens": 64, "milliseconds_per_token": {"whole": 1.5}}]
    step = {"time": {"update": 0.4, "whole": 0.3}, "gradient_difference": 2e-6, "lengths": costs}
    (tmp_path / "bench-small.json").write_text(
        json.dumps({**common, "step": step, "journal": {"share_of_cpu": 0.014}, "app": app})
    )
    speed = {"speed": {"bare": {"decode": 0.9, "whole": 1.5}}}
    (tmp_path / "bench-small-rollout.json").write_text(json.dumps({**common, "rollout": speed}))
    text = "\n".join(readme.lines(readme.read(tmp_path)))
    for part in (
        "| 0.90 | 1.50 | 0.40 | 0.30 | – | 2e-06 |",
        "| batch_size = prompts | 9.50 | 6.25 | 100 / 100 |",
        "| its default, batch_size 1 (scaled from 1 of 4 prompts) | 9.50 |",
        "| 2 | 80 MB | 60 MB (0.75) | 50 MB | 20 MB (0.40) | 99 / 90 MB |",
        "64 tokens |",
        "1.4% of a run's CPU",
        "a step takes 1.02 times as long (0.446 against 0.439 s, medians)",
        "| decoding, times as fast | whole rollout, times as fast | update, share of its time |",
        "Measured 2026-11-22",
        "Nothing else ran there. Times as fast and shares are medians of the ratios",
    ):
        assert part in text, text
    assert readme.lines([]) == []
    busy = json.loads((tmp_path / "bench-small.json").read_text()) | {"load": {"others_cores": 1.2}}
    assert "ther work took up to 1.2 cores meanwhile: trust the CPU-time ratios" in readme.lines([busy])[-1]
