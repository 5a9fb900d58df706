"""Groups: what does it do differently? One prompt of one step, its answers in rows, the marked one in full below."""

from __future__ import annotations

import asyncio
import re
from bisect import bisect_left

from textual.app import ComposeResult
from textual.content import Content

from tui.samples import Answer, PromptGroup, StepSamples, read_samples
from tui.screens.live.text import FOCUS, MUTED, REWARD, Room, figure, line, one_line, signed, wrapped
from tui.screens.live.view import Block, View
from tui.snapshot import RunSnapshot

PARTS_SHOWN = 5
PART_CELLS = 8
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


class Groups(View):
    """j and k mark an answer, [ and ] choose the prompt, left and right the step; the newest step is followed until one is
    chosen."""

    TITLE = "groups"
    METHODS = frozenset({"down", "up", "next", "previous", "earlier", "later", "fold", "page_down", "page_up", "first", "last"})

    def __init__(self) -> None:
        super().__init__()
        self.step: int | None = None  # chosen; None: the newest
        self.prompt = 0
        self.answer = 0
        self.scroll = 0  # of the text
        self.folded = False
        self._block = Block()
        self._read: StepSamples | None = None  # of the chosen step

    def compose(self) -> ComposeResult:
        yield self._block

    def draw(self, snapshot: RunSnapshot, room: Room) -> None:
        samples = self._samples(snapshot)
        if samples is None or not samples.groups:
            self._block.put(_nothing(snapshot, samples, self.step, room))
            return
        self.prompt = min(self.prompt, len(samples.groups) - 1)
        group = samples.groups[self.prompt]
        self.answer = min(self.answer, len(group.answers) - 1)
        self._block.put(group_page(samples, self.prompt, self.answer, room, self))

    def move(self, method: str) -> None:
        match method:
            case "down" | "up":
                self.answer, self.scroll = max(0, self.answer + (1 if method == "down" else -1)), 0
            case "next" | "previous":
                self.prompt, self.answer, self.scroll = max(0, self.prompt + (1 if method == "next" else -1)), 0, 0
            case "first" | "last":
                self.answer, self.scroll = 0 if method == "first" else 1 << 30, 0
            case "page_down" | "page_up":
                self.scroll = max(0, self.scroll + (8 if method == "page_down" else -8))
            case "fold":
                self.folded, self.scroll = not self.folded, 0
            case "earlier" | "later":
                self._go(-1 if method == "earlier" else 1)
        self.draw_again()

    def _samples(self, snapshot: RunSnapshot) -> StepSamples | None:
        if self.step is None:
            return snapshot.around.samples
        if self._read is not None and self._read.step == self.step:
            return self._read
        return None

    def _go(self, direction: int) -> None:
        """To the step with samples before or after the one that is shown; past the last one the newest is followed again."""
        if self.snapshot is None:
            return
        steps = sorted(self.snapshot.sample_files)
        newest = self.snapshot.around.samples
        here = self.step if self.step is not None else (newest.step if newest is not None else None)
        if here is None or not steps:
            return
        place = bisect_left(steps, here) + direction
        self.scroll = 0
        if place >= len(steps) - 1:
            self.step = None
        else:
            self.step = steps[max(place, 0)]
            self.run_worker(self._fetch(self.step), group="samples", exclusive=True, exit_on_error=False)

    async def _fetch(self, step: int) -> None:
        """Read the chosen step's file off the event loop, and draw it unless another step was chosen meanwhile."""
        if self.snapshot is None:
            return
        file, folder = self.snapshot.sample_files.get(step), self.snapshot.around.folder
        if file is not None and folder is not None:
            self._read = await asyncio.to_thread(read_samples, folder, file, step)
            self.draw_again()


def _nothing(snapshot: RunSnapshot, samples: StepSamples | None, step: int | None, room: Room) -> list[Content]:
    if samples is not None and samples.problem:
        text = samples.problem
    elif samples is not None:
        text = f"the samples file of step {samples.step} holds no answer that can be read ({samples.skipped} rows skipped)"
    elif step is not None:
        text = f"reading the samples of step {step}"
    elif snapshot.method == "sft":
        text = "supervised training samples no answers: there are no groups"
    else:
        text = "no group yet: the first step's rollouts are yet to come"
    return [room.cut(line(one_line(text, room.width)))]


def group_page(samples: StepSamples, prompt: int, answer: int, room: Room, view: Groups) -> list[Content]:
    """The whole view for one group; `view` says what is folded and scrolled."""
    group = samples.groups[prompt]
    lines = [_place(samples, prompt, room, followed=view.step is None)]
    most = 2 if room.height < 30 else 5
    question = wrapped(group.prompt.strip(), room.width, most + 1)
    lines += [Content(text) for text in question[:most]]
    if group.answer is not None:
        lines.append(line(("answer ", MUTED), one_line(group.answer, room.width - 7)))
    names = list(dict.fromkeys(name for each in group.answers for name in each.parts))[: _parts_that_fit(room)]
    lines.append(Content.styled(_head(names), MUTED))
    rows = min(len(group.answers), max(3, (room.height - len(lines)) // 2))
    top = min(max(0, answer - rows + 1), len(group.answers) - rows)
    for number, each in list(enumerate(group.answers))[top : top + rows]:
        lines.append(_row(number, each, names, room, marked=number == answer))
    lines.append(_text_rule(group, answer, rows, room, folded=view.folded))
    text = wrapped(shown_text(group.answers[answer], folded=view.folded), room.width - 2)
    height = max(room.height - len(lines), 1)
    view.scroll = min(view.scroll, max(len(text) - height, 0))
    shown = text[view.scroll : view.scroll + height]
    if len(text) > view.scroll + height:
        shown[-1] = f"… {len(text) - view.scroll - height + 1} more lines: ctrl+d"
    return [room.cut(each) for each in [*lines, *(line("  ", text) for text in shown)]]


def shown_text(answer: Answer, *, folded: bool) -> str:
    """The completion; `folded`: with a count in place of what it thinks."""
    if not folded:
        return answer.text
    return _THINKING.sub(lambda found: f"<think>… {len(found[0])} characters …</think>", answer.text)


def _place(samples: StepSamples, prompt: int, room: Room, *, followed: bool) -> Content:
    group = samples.groups[prompt]
    newest = " newest" if followed else ""
    rest = f"prompt {prompt + 1} of {len(samples.groups)}   {len(group.answers)} answers"
    skipped = f"   {samples.skipped} rows unreadable" if samples.skipped else ""
    note = f"   {samples.problem}" if samples.problem else ""
    return room.cut(line("step ", (f"{samples.step}", "bold"), (newest, MUTED), f"   {rest}", (skipped + note, MUTED)))


def _parts_that_fit(room: Room) -> int:
    return max(0, min(PARTS_SHOWN, (room.width - 42) // (PART_CELLS + 2)))


def _head(names: list[str]) -> str:
    parts = "".join(f"{one_line(name, PART_CELLS):>{PART_CELLS + 2}}" for name in names)
    return f"   {'#':>3}  {'reward':>7}{parts}  {'advantage':>9}  {'tokens':>6}  end"


def _row(number: int, answer: Answer, names: list[str], room: Room, *, marked: bool) -> Content:
    parts = "".join(f"{figure(answer.parts.get(name)):>{PART_CELLS + 2}}" for name in names)
    end = "limit" if answer.finish == "length" else one_line(answer.finish, 8)
    tokens = "–" if answer.tokens is None else str(answer.tokens)
    rest = f"{parts}  {signed(answer.advantage):>9}  {tokens:>6}  {end}"
    style = FOCUS if marked else ""
    return line(
        (f" {room.sign('▸') if marked else ' '} {number + 1:>3}", style),
        "  ",
        (f"{figure(answer.reward):>7}", REWARD),
        (rest, style),
    )


def _text_rule(group: PromptGroup, answer: int, rows: int, room: Room, *, folded: bool) -> Content:
    hidden = len(group.answers) - rows
    words = f" answer {answer + 1}" + (f", {hidden} rows not shown" if hidden else "") + (", think folded " if folded else " ")
    dash = "-" if room.glyphs == "ascii" else "─"
    return Content.styled(dash * 2 + words + dash * max(room.width - len(words) - 2, 0), MUTED)
