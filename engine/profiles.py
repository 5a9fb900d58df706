"""What a method is first tried on: kinds of reasoning data, each with sample rows and the rewards that read their fields.

Data only. A profile changes nothing that a config could not say: it is a start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import InputError


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of data. `methods` are those whose picker names it first."""

    id: str
    title: str
    summary: str  # what the rows hold and what of it is rewarded
    methods: tuple[str, ...]
    topic: str  # of `sample-data`
    format: str  # of `sample-data`: the layout whose fields the rewards read
    rewards: tuple[Mapping[str, Any], ...]  # as a config's `rewards`


def _of_a_field(id: str, title: str, summary: str, topic: str, judge: str) -> Profile:
    """Chains of a field that has terms of its own; `judge` is the reward that compares the answer."""
    rewards = ({"name": judge, "weight": 1.0}, {"name": "domain", "weight": 0.5}, {"name": "step_coverage", "weight": 0.3})
    return Profile(id, title, summary, ("dr_grpo",), topic, "reasoning", rewards)


PROFILES: Mapping[str, Profile] = {
    profile.id: profile
    for profile in (
        Profile(
            id="chains",
            title="multi-step chains",
            summary="problems with their reasoning steps; the answer is rewarded, and the steps that lead to it",
            methods=("grpo",),
            topic="chains",
            format="reasoning",
            rewards=(
                {"name": "number", "weight": 1.0},
                {"name": "step_coverage", "weight": 0.3},
                {"name": "format", "weight": 0.2},
            ),
        ),
        Profile(
            id="decisive",
            title="decisive steps",
            summary="chains whose marks say which steps decide: those weigh three times as much in the reward",
            methods=("gspo", "gspo_token"),
            topic="decisive",
            format="reasoning",
            rewards=(
                {"name": "number", "weight": 1.0},
                {"name": "step_coverage", "weight": 0.5},
                {"name": "format", "weight": 0.2},
            ),
        ),
        _of_a_field(
            "medical",
            "medical",
            "doses, drip rates and clearances; the number is rewarded, its unit, the terms and the steps",
            topic="medicine",
            judge="number",
        ),
        _of_a_field(
            "scientific",
            "scientific",
            "stoichiometry, half-lives and kinematics; the number is rewarded, its unit, the terms and the steps",
            topic="science",
            judge="number",
        ),
        _of_a_field(
            "legal",
            "legal",
            "deadlines, interest and limitation periods; the date or amount is rewarded, the terms and the steps",
            topic="law",
            judge="answer",
        ),
    )
}


def profile(name: str) -> Profile:
    """The profile called `name`; an InputError names those there are."""
    if name not in PROFILES:
        raise InputError(f"unknown profile {name!r}", where="profile", remedy=f"one of: {', '.join(PROFILES)}")
    return PROFILES[name]


def offered(method_id: str) -> tuple[Profile, ...]:
    """Every profile, those made for the method first."""
    return tuple(sorted(PROFILES.values(), key=lambda each: method_id not in each.methods))
