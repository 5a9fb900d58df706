"""A step's rollouts with their rewards, and dynamic sampling: groups that teach nothing are replaced by further rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.config import RunConfig
from engine.types import Example, Group, Prompt
from engine.worker import keys
from engine.worker.advantages import has_signal
from engine.worker.credit import shaped
from engine.worker.guard import MemoryGuard
from engine.worker.model import Policy
from engine.worker.rewarding import Judge
from engine.worker.sampler import sample
from engine.worker.task import Watch


@dataclass(slots=True)
class Gathered:
    """The groups of a step, in the number that the config asks for; `discarded` were sampled and replaced."""

    groups: list[Group] = field(default_factory=list)
    discarded: list[Group] = field(default_factory=list)
    refills: int = 0


class Gatherer:
    """Samples and judges; what a step gathers depends on its number and the weights alone."""

    def __init__(
        self, policy: Policy, config: RunConfig, judge: Judge, data: Sequence[tuple[Prompt, Example]], guard: MemoryGuard
    ) -> None:
        self.policy = policy
        self.config = config
        self.judge = judge
        self.data = data
        self.guard = guard
        self.objective = config.resolved_objective()

    def gather(self, step: int, watch: Watch) -> Gathered:
        """The step's groups. With dynamic sampling (DAPO 2503.14476 Eq. 11) groups whose rewards, as judged, are all equal are
        replaced, in up to `dynamic_sampling` extra rollouts of as many unused prompts as are missing; where these do not
        suffice, such groups keep their places, so that the normalisers never change."""
        wanted, seed = self.config.sampling.prompts_per_step, self.config.run.seed
        rows = keys.step_rows(len(self.data), wanted, step, seed)
        found = self._sampled(rows, step, 0, watch)
        if not self.objective.dynamic_sampling or self.objective.advantage == "global":
            return Gathered(self._shaped(found))
        taken, refills = set(rows), 0
        useful = [group for group in found if teaches(group)]
        useless = [group for group in found if not teaches(group)]
        while len(useful) < wanted and refills < self.objective.dynamic_sampling:
            rows = keys.refill_rows(len(self.data), taken, wanted - len(useful), step, refills + 1, seed)
            if not rows:
                break
            refills += 1
            taken.update(rows)
            for group in self._sampled(rows, step, refills, watch):
                (useful if teaches(group) else useless).append(group)
        kept = [*useful, *useless][:wanted]
        return Gathered(self._shaped(kept), self._shaped(useless[wanted - len(useful) :]), refills)

    def _shaped(self, groups: Sequence[Group]) -> list[Group]:
        return shaped(groups, self.objective, self.config.sampling.max_completion_tokens)

    def _sampled(self, rows: Sequence[int], step: int, number: int, watch: Watch) -> list[Group]:
        sampling = self.config.sampling
        chosen = [self.data[i] for i in rows]
        prompts, examples = [prompt for prompt, _ in chosen], [example for _, example in chosen]
        with watch.timed(step, "rollout"):
            rollouts = self.guard.sampled(
                len(prompts) * sampling.group_size,
                lambda rows_at_once: sample(
                    self.policy,
                    prompts,
                    sampling.group_size,
                    max_tokens=sampling.max_completion_tokens,
                    temperature=sampling.temperature,
                    seed=self.config.run.seed,
                    step=step,
                    purpose=f"refill {number}" if number else "sample",
                    rows_at_once=rows_at_once,
                    share_prompts=sampling.share_prompts,
                    alive=watch.alive,
                ),
            )
        with watch.timed(step, "reward"):
            return self.judge.groups(prompts, examples, rollouts, step, extra=number > 0)


def teaches(group: Group) -> bool:
    """Whether the group's rewards differ, those of whole completions or those of steps."""
    values = [value for steps in group.step_rewards for _, value in steps]
    return has_signal(group.outcomes or group.rewards) or has_signal(values)
