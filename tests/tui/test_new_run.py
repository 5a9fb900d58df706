"""The screens of a new run, by keys alone: every step painted, errors with remedies, nothing lost, and a real run at the end."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest
from textual import events

from engine import config as configs
from engine import machine_rates
from engine.estimate import estimate
from engine.figures import duration
from engine.machine_rates import Rates
from engine.measuring import rates_key
from tests.tui.support import check_golden, painted_text, wait_for, wait_for_text
from tests.tui.wizard import (
    SIZES,
    entry,
    go_to_field,
    home,
    next_step,
    pairs,
    press,
    rows_file,
    same_everywhere,
    screen,
    settled,
    type_into,
    wizard,
)
from tui import draft_file as drafts
from tui.draft import Draft
from tui.forms import MODEL, TRAIN, VALID
from tui.screens.new_run import NewRunScreen
from tui.screens.new_run.estimate import bar, plan
from tui.screens.new_run.forecast import forecast
from tui.screens.new_run.review import config_file, save_config

__all__ = ["home"]  # a fixture
HOSTILE = "[/INST] [@click=app.quit]x[/] \x1b[31m\x1b]52;c;aGk=\x07 \x9b1m \u202eevil 漢字 👩‍👩‍👧 \x00 end"


async def test_every_step_painted(home: Path) -> None:
    data = rows_file(home, *pairs(8), {"prompt": "no answer"}, {"prompt": "none here"}, pairs(1)[0])
    draft = Draft().with_text(TRAIN, str(data)).with_text("optim.micro_batch_rows", "16").with_text("run.name", "mine")
    drafts.save(draft, home)
    steps = {"method": "Policy Optimization", "data": "full marks", "configure": "begun from", "estimate": "held throughout"}
    async with wizard(home) as pilot:
        for number, (name, awaited) in enumerate((*steps.items(), ("review", "model: demo")), 1):
            if number > 1:
                await next_step(pilot, number)
            for size in SIZES:
                await pilot.resize_terminal(*size)
                await wait_for_text(pilot, awaited)
                await settled(pilot)
                check_golden(f"new_run_{name}_{size[0]}x{size[1]}", same_everywhere(painted_text(pilot.app), home))
            await pilot.resize_terminal(*SIZES[0])


async def test_from_the_empty_home_screen_to_a_run_that_reaches_a_step(home: Path) -> None:
    """Everything is ready for the embedded model; the form makes the run small."""
    async with wizard(home) as pilot:
        await next_step(pilot, 2)
        await next_step(pilot, 3)
        small = {"sampling.prompts_per_step": "4", "sampling.group_size": "4", "run.steps": "2", "run.eval_rows": "8"}
        for key, text in small.items():
            await type_into(pilot, key, text)
        assert "changed     sampling.prompts_per_step, sampling.group_size, run.steps" in painted_text(pilot.app)
        await next_step(pilot, 4)
        await wait_for_text(pilot, "✓ fits")
        assert "enter start" in await next_step(pilot, 5)
        assert not drafts.draft_file(home).exists() or drafts.load(home) == screen(pilot).draft
        await pilot.press("enter")
        await wait_for(pilot, lambda: not isinstance(pilot.app.screen, NewRunScreen), "the live screen")
        rows = await pilot.app.engine.runs()
        assert len(rows) == 1 and rows[0].steps == 2
        run = await pilot.app.engine.attach(rows[0].id)
        state = await run.wait()
        assert (state.state, state.step) == ("finished", 2), state.failure
        assert not drafts.draft_file(home).exists(), "the draft has become a run"
        assert not any(isinstance(each, NewRunScreen) for each in pilot.app.screen_stack)
        config = configs.load(run.record.config_file).config
        assert (config.run.steps, config.sampling.group_size, config.run.eval_rows) == (2, 4, 8)


async def test_a_kept_draft_starts_with_five_enters_pressed_at_once(home: Path) -> None:
    draft = Draft("sft").with_text("run.steps", "1").with_text("run.eval_rows", "4").with_text("sampling.prompts_per_step", "2")
    drafts.save(draft, home)
    async with wizard(home) as pilot:
        assert "your draft is back: sft, 3 typed values" in painted_text(pilot.app)
        await pilot.press(*["enter"] * 5)
        await wait_for(pilot, lambda: not isinstance(pilot.app.screen, NewRunScreen), "the live screen")
        rows = await pilot.app.engine.runs()
        assert [(row.method, row.steps) for row in rows] == [("sft", 1)]
        state = await (await pilot.app.engine.attach(rows[0].id)).wait()
        assert (state.state, state.step) == ("finished", 1), state.failure


async def test_the_explanation_follows_the_marker(home: Path) -> None:
    async with wizard(home) as pilot:
        assert "Group Relative Policy Optimization" in painted_text(pilot.app)
        shown = await press(pilot, "j", "j")
        assert "Group Sequence Policy Optimization" in shown and "minibatches 4" in shown
        assert "arXiv 2507.18071" in await press(pilot, "pagedown"), "what is below the edge is gone to by pages"
        shown = await press(pilot, "k", "k", "k", "k")
        assert "Supervised fine-tuning" in shown and "it has no rewards" in shown
        await next_step(pilot, 2)
        shown = await wait_for_text(pilot, "targets")
        assert "arithmetic-sft.jsonl" in shown and "format prompt+completion" in shown
        await next_step(pilot, 3)
        keys = [each.field.key for each in screen(pilot).step.entries()]
        assert "adapter.dropout" in keys and "sampling.group_size" not in keys and "rewards" not in keys


async def test_a_wrong_value_is_named_under_its_field_and_kept(home: Path) -> None:
    """Every key is pressed here, from field to field and letter by letter."""
    async with wizard(home, step=3) as pilot:
        assert "▸ columns" in await press(pilot, "tab", "tab", "tab", "shift+tab")
        await pilot.press("down", "tab", "escape")
        assert "▸ system" in await press(pilot, "shift+tab"), "back to where the focus was before"
        await pilot.press("escape")
        await go_to_field(pilot, "optim.learning_rate")
        await pilot.press("ctrl+u", *"1e-x")
        assert "above 0" in painted_text(pilot.app)
        shown = await wait_for_text(pilot, "✕ Input should be a valid number (got '1e-x')")
        assert "▸ learning rate         1e-x" in shown
        await pilot.press("escape", "enter")
        shown = await wait_for_text(pilot, "✕ optim.learning_rate: Input should be a valid number")
        assert "3 of 5" in shown
        assert "* learning rate         1e-x" in shown
        shown = await press(pilot, "enter")
        assert "3 of 5" in shown and screen(pilot).draft.text("optim.learning_rate") == "1e-x"
        await go_to_field(pilot, "optim.learning_rate")
        await pilot.press("ctrl+r")
        await wait_for(pilot, lambda: "✕" not in painted_text(pilot.app).partition("─")[0], "the end of the error")
        assert screen(pilot).draft == Draft()
        await pilot.press("enter")
        await next_step(pilot, 4)


async def test_what_is_typed_is_there_the_next_time_until_it_is_thrown_away(home: Path) -> None:
    async with wizard(home, step=2) as pilot:
        await type_into(pilot, VALID, "held.jsonl")
        await wait_for(pilot, lambda: drafts.load(home) is not None, "the kept draft")
        await press(pilot, "escape", "escape")
        assert not isinstance(pilot.app.screen, NewRunScreen)
        await press(pilot, "n")
        shown = await wait_for_text(pilot, "your draft is back")
        assert "grpo, 1 typed value; x starts anew" in shown
        assert screen(pilot).draft.text(VALID) == "held.jsonl"
        await press(pilot, "x")
        assert screen(pilot).draft == Draft() and drafts.load(home) is None
        await press(pilot, "j")
        await press(pilot, "q")
        assert drafts.load(home) == Draft("dr_grpo")


TROUBLE = {  # what is typed into which field -> what is said
    "no such file": (TRAIN, "nowhere.jsonl", "no such data file"),
    "no ending": (TRAIN, "rows", "supported: .jsonl"),
    "a folder": (TRAIN, "/tmp", "is a folder"),
    "nothing": (TRAIN, "", "press g for sample rows"),
    "no held-out file": (VALID, "nowhere.jsonl", "no such data file"),
    "no model": (MODEL, "/no/model", "no config.json"),
    "not on this machine": (MODEL, "somebody/some-model", "nor a model on this machine"),
}


async def test_a_file_that_cannot_be_used_is_said_with_its_remedy_and_the_next_step_waits(home: Path) -> None:
    async with wizard(home, (120, 40), step=2) as pilot:
        for name, (key, text, said) in TROUBLE.items():
            await type_into(pilot, key, text)
            await wait_for_text(pilot, said)
            shown = await press(pilot, "enter")
            assert "2 of 5" in shown and "✕" in "".join(shown.splitlines()[-4:]), name
            assert screen(pilot).draft.text(key) == text == entry(pilot, key).value, name
            await go_to_field(pilot, key)
            await pilot.press("ctrl+r", "escape")
            await wait_for(pilot, lambda: screen(pilot).draft == Draft(), "the end of the trouble")
        await go_to_field(pilot, MODEL)
        await pilot.press("ctrl+u", *"a/b")
        await wait_for_text(pilot, "not looked at yet")
        assert "not looked at yet" in await press(pilot, "c"), "no beginning of a name is asked for"
        await press(pilot, "escape")
        await wait_for_text(pilot, "✕ a/bc: ")


async def test_the_marked_problem_shows_its_row_and_remedy(home: Path) -> None:
    data = rows_file(home, *pairs(3), {"prompt": "first trouble"}, {"prompt": "second trouble"}, [1], *pairs(1))
    drafts.save(Draft().with_text(TRAIN, str(data)), home)
    async with wizard(home, step=2) as pilot:
        shown = await wait_for_text(pilot, '{"prompt": "first trouble"}')
        assert "⚠ ready with warnings: 7 rows, 4 usable" in shown
        assert re.search(r"▸ +2 x line 4 +✕ missing-field", shown) and "remedy" in shown
        assert '{"prompt": "second trouble"}' in await press(pilot, "j")
        shown = await press(pilot, "j")
        assert re.search(r"line 6 .*expected a JSON object", shown) and "[1]" in shown
        shown = await press(pilot, "j", "j", "j")
        assert "repeats an earlier row" in shown and "line 7" in shown


async def test_a_limit_that_leaves_no_prompt_is_said_and_can_be_raised_in_the_next_step(home: Path) -> None:
    """`What is 10+1?` has 13 characters, which the embedded model reads as as many tokens, with 3 of the chat around them."""
    drafts.save(Draft().with_text("sampling.max_prompt_tokens", "4").with_text(TRAIN, str(rows_file(home, *pairs(4)))), home)
    async with wizard(home, step=2) as pilot:
        shown = await wait_for_text(pilot, "every prompt is over the limit")
        assert "raise sampling.max_prompt_tokens" in shown and "16 to 16 tokens" in shown and "✕ unusable" in shown
        await next_step(pilot, 3)


async def test_g_makes_sample_rows_that_are_ready(home: Path) -> None:
    async with wizard(home, step=2) as pilot:
        await press(pilot, "g")
        made = home / "data" / "grpo-arithmetic-sample.jsonl"
        await wait_for_text(pilot, "✓ ready: 300 rows, 300 usable")
        assert "300 rows written to" in painted_text(pilot.app)
        assert screen(pilot).draft.text(TRAIN) == str(made) and screen(pilot).draft.text(VALID) == ""
        made.write_text(made.read_text() + json.dumps(pairs(1)[0]) + "\n")
        await press(pilot, "g")
        assert "which was there" in painted_text(pilot.app)
        assert len(made.read_text().splitlines()) == 301, "a file that is there is not written over"
        await type_into(pilot, MODEL, "/some/other")
        await press(pilot, "g")
        await wait_for(pilot, lambda: screen(pilot).draft.text(TRAIN).endswith("grpo-words-sample.jsonl"), "word problems")


async def test_the_review_saves_what_trains_the_same_says_where_it_is_from_and_what_the_engine_refuses(home: Path) -> None:
    draft = Draft("gspo").with_text("run.name", "a b/../c").with_text("run.steps", "3").with_text("rewards", "[{name: anser}]")
    drafts.save(draft, home)
    async with wizard(home, step=5) as pilot:
        await press(pilot, "w")
        shown = await wait_for_text(pilot, "saved to")
        saved = home / "configs" / "a-b-..-c.yaml"
        assert "the same from a shell:" in shown and "droid-tune train" in shown and saved.name in shown
        ready = screen(pilot).checked.ready
        assert ready is not None and configs.dump(configs.load(saved).config) == configs.dump(ready) == saved.read_text()
        await press(pilot, "w")
        assert [path.name for path in saved.parent.iterdir()] == [saved.name]

        await pilot.resize_terminal(80, 150)  # all of it
        shown = await press(pilot, "o")
        assert re.search(r"method: gspo +chosen\n", shown) and re.search(r"type: lora +recipe\n", shown)
        assert re.search(r"format: auto +default\n", shown) and "opened" not in shown
        assert re.search(r"steps: 3 +typed\n", shown) and re.search(r"seed: 0 +default\n", shown)
        assert not re.search(r"steps: 3 +typed\n", await press(pilot, "o"))

        await pilot.press("enter")
        shown = await wait_for_text(pilot, "✕ not started")
        assert "anser" in shown and "5 of 5" in shown
        assert await pilot.app.engine.runs() == []
        assert screen(pilot).draft == draft == drafts.load(home)


def test_another_config_of_the_same_name_gets_a_number(home: Path) -> None:
    first, second = (Draft().with_text("run.steps", steps).checked(home).ready for steps in ("3", "4"))
    assert first is not None and second is not None
    assert config_file(home, first).name == "grpo-demo.yaml"
    paths = [save_config(config, home).name for config in (first, second, first, second)]
    assert paths == ["grpo-demo.yaml", "grpo-demo-2.yaml", "grpo-demo.yaml", "grpo-demo-2.yaml"]
    assert configs.load(home / "configs" / "grpo-demo-2.yaml").config.run.steps == 4


def strange(text: str) -> list[str]:
    """Characters that a terminal would obey or reorder by."""
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return [c for c in text if c != "\n" and (unicodedata.category(c) == "Cc" or unicodedata.bidirectional(c) in bidi)]


async def test_hostile_rows_and_names_are_shown_as_text(home: Path) -> None:
    folder = home / HOSTILE.replace("/", "|").replace("\x00", "0")
    folder.mkdir()
    rows = [
        *pairs(2),
        {"prompt": HOSTILE},
        {HOSTILE: HOSTILE},
        {"prompt": "x" * 1_000_000},
        {"prompt": HOSTILE, "answer": 5, HOSTILE: 1},
        json.dumps({"prompt": HOSTILE}, ensure_ascii=False),
        "\x1b[2J\x00" + HOSTILE.replace("\n", ""),
    ]
    data = rows_file(folder, *rows)
    typed = {TRAIN: str(data), "run.name": HOSTILE, "data.system": HOSTILE, "sampling.max_prompt_tokens": "512"}
    draft = Draft()
    for key, text in typed.items():
        draft = draft.with_text(key, text)
    drafts.save(draft, home)
    seen: list[str] = []
    async with wizard(home) as pilot:

        async def look() -> None:
            """At the one size and the other, by turns."""
            await pilot.resize_terminal(*SIZES[len(seen) % 2])
            await settled(pilot)
            seen.append(painted_text(pilot.app))

        await next_step(pilot, 2)
        await wait_for_text(pilot, "unusable")
        for _ in range(6):
            await press(pilot, "j")
            await look()
        assert all(text in "".join(seen) for text in ("unusable", "[/INST]", "[@click=app.quit]", "漢字"))
        rows_file(folder, *rows[:4])
        await type_into(pilot, VALID, "datasets/arithmetic-heldout.jsonl")
        await wait_for_text(pilot, "ready with warnings")
        await press(pilot, "m")
        await wait_for_text(pilot, "the first row")
        await press(pilot, "j", "j", "right", "right")
        await look()
        await press(pilot, "escape")
        for number in (3, 4, 5):
            await next_step(pilot, number)
            await look()
        await press(pilot, "o")
        for _ in range(4):
            await press(pilot, "pagedown")
            await look()
        await press(pilot, "w")
        seen.append(await wait_for_text(pilot, "saved to"))
    assert strange("".join(seen)) == []
    assert "␛" in "".join(seen)


async def test_a_terminal_without_unicode_gets_ascii(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DROID_TUNE_GLYPHS", "ascii")
    async with wizard(home, (120, 40)) as pilot:
        shown = painted_text(pilot.app) + await press(pilot, "p")
        await press(pilot, "escape")
        shown += await next_step(pilot, 2)
        await press(pilot, "m")
        shown += await wait_for_text(pilot, "the first row")
        await press(pilot, "escape")
        for number in (3, 4):
            shown += await next_step(pilot, number)
        shown += await wait_for_text(pilot, "+ fits")
    shown = shown.translate(dict.fromkeys(range(0x2581, 0x2589)))  # the ends of a scroll bar, which Textual draws
    assert shown.isascii(), {character for character in shown if not character.isascii()}


async def test_control_characters_cannot_be_pasted(home: Path) -> None:
    async with wizard(home, step=2) as pilot:
        await go_to_field(pilot, MODEL)
        for text in ("\x1b[31mred", "", "\n", "a\x9bb", "\u202ex"):
            pilot.app.post_message(events.Paste(text))
            await settled(pilot)
        assert screen(pilot).draft.text(MODEL) == "demo"
        pilot.app.post_message(events.Paste("-[/INST]漢"))
        await wait_for(pilot, lambda: screen(pilot).draft.text(MODEL) == "demo-[/INST]漢", "what can be pasted")


def test_a_plan_that_does_not_fit_says_what_to_change() -> None:
    """Of the embedded model's run: a limit that one change meets, and one that nothing does."""
    config = Draft().with_text("run.memory_limit_gb", "0.0021").checked(Path.cwd()).ready
    assert config is not None
    found = estimate(config)
    assert not found.fits and found.change is not None
    shown = plan(found, 78, "braille").plain
    assert "✕ does not fit" in shown and f"set {found.change.key} to {found.change.value}: peak" in shown
    assert dict(forecast(found))["memory"].startswith("✕ does not fit: peak")
    assert max(map(len, shown.splitlines())) <= 78
    assert "█" not in plan(found, 78, "ascii").plain
    section, key = found.change.key.split(".")
    changed = getattr(config, section).model_copy(update={key: found.change.value})
    assert estimate(config.model_copy(update={section: changed})).fits, "what is proposed does it"

    tiny = Draft().with_text("run.memory_limit_gb", "0.0001").checked(Path.cwd()).ready
    assert tiny is not None
    told = dict(forecast(estimate(tiny)))
    assert told["to fit"].startswith("nothing that was tried is enough") and "room for" not in told


async def test_time_is_told_once_the_speed_is_measured_and_what_each_method_costs(home: Path) -> None:
    """Rates as a machine of 1 GFLOP/s would have them, kept as the measurement keeps them."""
    async with wizard(home) as pilot:
        shown = await wait_for_text(pilot, "x memory of sft")
        assert "x time" not in shown
        table = {1: 1e9, 2048: 1e9}
        numbers = dict.fromkeys(("plain", "norm", "exp", "softmax", "draw"), 1e9)
        rates = Rates({4: {64: table}, 2: {64: table}}, {1: 1e9}, {1: 1e10}, numbers, 1e-6, 1e9)
        for number in (2, 3, 4):
            await next_step(pilot, number)
        assert "s measure speed" in await wait_for_text(pilot, "was not measured yet")
        await next_step(pilot, 5)
        assert "s measure speed" in await wait_for_text(pilot, "was not measured yet")
        machine_rates.keep(home, rates_key(), rates)
        await press(pilot, "escape")
        shown = await wait_for_text(pilot, "with every completion at its limit")
        assert "takes longest" in shown and "s measure speed" not in shown
        await pilot.resize_terminal(80, 60)
        shown = await wait_for_text(pilot, "time of a step, about")
        assert "5 evaluations, each" in shown and "rollout  " in shown
        await next_step(pilot, 5)
        config = screen(pilot).checked.ready
        assert config is not None
        known = estimate(config, rates=rates).time
        assert known is not None
        shown = await wait_for_text(pilot, f"about {duration(known.run)}, ")
        assert "memory    ✓ fits: peak" in shown and "room for  micro-batches of" in shown
        for _ in range(4):
            await press(pilot, "escape")
        shown = await wait_for_text(pilot, "x time, ")
        assert re.search(r"costs +about .* a step, [\d.]+x that of sft; peak .*B, [\d.]+x that of sft", " ".join(shown.split()))


async def test_a_format_that_is_none_can_be_mended_where_it_stops_the_way(home: Path) -> None:
    """The format is typed in the third step, which a wrong one closes."""
    drafts.save(Draft().with_text("data.format", "auto?"), home)
    async with wizard(home, step=2) as pilot:
        await wait_for_text(pilot, "press m for the formats")
        await press(pilot, "m")
        await press(pilot, "ctrl+r", "enter")
        await wait_for_text(pilot, "✓ ready")
        await next_step(pilot, 3)


def test_a_bar_is_as_long_as_its_share() -> None:
    """Half of 10 cells is 5; a sixteenth of 10 is 0.625 of a cell, five eighths; the least is an eighth; nothing is nothing."""
    assert bar(1, 2, 10, "block") == "█████"
    assert bar(1, 16, 10, "block") == "▋"
    assert (bar(1, 10_000, 10, "block"), bar(0, 5, 10, "block"), bar(9, 5, 4, "block")) == ("▏", "", "████")
    assert (bar(1, 2, 10, "ascii"), bar(1, 10_000, 10, "ascii"), bar(0, 0, 10, "ascii")) == ("#####", "#", "")
