"""Asked from the method and the data: which kind of data to try the method on."""

from __future__ import annotations

from collections.abc import Mapping

from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.widget import Widget

from engine import methods, profiles
from engine.profiles import Profile
from tui.draft import Draft
from tui.screens.new_run.parts import Paper, Rows, Scroll, columns, wrapped
from tui.screens.new_run.step import Aside

NONE = "none"


class ProfileAside(Aside):
    """The profiles, those that are made for the method first; the marked one explained below."""

    TITLE = "profile"
    DEFAULT_CSS = """
    ProfileAside > Rows { margin: 1 0; max-height: 50%; }
    """

    def compose(self) -> ComposeResult:
        draft = self.flow.draft
        offered = profiles.offered(draft.method)
        self._offered: tuple[Profile | None, ...] = (*offered, None)
        longest = max(len(each.title) for each in offered)
        rows = [f"{each.title:<{longest}}   {each.summary}" for each in offered]
        yield Rows([*rows, f"{NONE:<{longest}}   {_none(draft)}"], self._offered.index(draft.profile))
        with Scroll(can_focus=False):
            yield Paper()

    def on_mount(self) -> None:
        self._moved()

    @property
    def rest(self) -> Widget:
        return self.query_one(Rows)

    @property
    def labels(self) -> Mapping[str, str]:
        return {"new_run.next": "choose"}

    @on(Rows.Moved)
    def _moved(self) -> None:
        draft, chosen = self.flow.draft, self._offered[self.query_one(Rows).index]
        self.query_one(Paper).drawing = lambda width: explanation(draft, chosen, width)

    async def take(self) -> bool:
        chosen = self._offered[self.query_one(Rows).index]
        draft = self.flow.draft.with_profile(None if chosen is None else chosen.id)
        self.flow.change(draft)
        self.flow.tell(taken(draft))
        return True


def first_tried_on(draft: Draft) -> str:
    """What the draft's method is first tried on, and the key that says more."""
    offered = profiles.offered(draft.method)
    own = [each.title for each in offered if draft.method in each.methods]
    gives = "sample rows" if methods.method(draft.method).kind == "sft" else "rewards and sample rows"
    said = f"{', '.join(own)} (p: {gives} for it, and other kinds)" if own else f"any kind of data (p: {gives})"
    return said if draft.profile is None else f"{said}; chosen: {draft.profile.title}"


def taken(draft: Draft) -> str:
    """What choosing the draft's profile has done, in a line."""
    chosen = draft.profile
    if chosen is None:
        rewards = "" if methods.method(draft.method).kind == "sft" else ": the rewards are what they were before"
        return f"no profile{rewards}"
    if methods.method(draft.method).kind == "sft":
        done = f"{chosen.title}: g on the data screen makes its rows"
    else:
        names = ", ".join(reward["name"] for reward in chosen.rewards)
        done = f"{chosen.title}: rewards {names}; g on the data screen makes rows for them"
    return f"{done}\n{draft.beyond_model}".rstrip()


def explanation(draft: Draft, chosen: Profile | None, width: int) -> Content:
    """What the marked profile holds and sets."""
    rule = Content.styled("─" * width, "$text-disabled")
    is_supervised = methods.method(draft.method).kind == "sft"
    if chosen is None:
        lines = wrapped(_none(draft), width - 2)
        return Content("\n").join([rule, Content.styled(NONE, "bold"), *(Content(f"  {line}") for line in lines)])
    rewards = ", ".join(f"{reward['name']} x {reward.get('weight', 1.0):g}" for reward in chosen.rewards)
    facts = [
        ("rewards", f"none: {draft.method} has no rewards" if is_supervised else f"{rewards}; they take the place of yours"),
        ("g makes", f"{chosen.format} rows, topic {chosen.topic}, and uses them as the data file"),
        ("made for", ", ".join(chosen.methods)),
    ]
    if beyond := draft.with_profile(chosen.id).beyond_model:
        facts.append(("", beyond))
    return Content("\n").join(
        [
            rule,
            Content.styled(chosen.title, "bold"),
            *(Content(f"  {line}") for line in wrapped(chosen.summary, width - 2)),
            Content(""),
            columns(facts, width, 11),
        ]
    )


def _none(draft: Draft) -> str:
    if methods.method(draft.method).kind == "sft":
        return "sample rows of arithmetic or word problems, as the model can read them"
    return "the recipe's rewards, or those that you typed"
