"""What is asked on the way to a new run, by keys: a profile, which column is which, a config file that is there already."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from engine import config as configs
from tests.tui.support import check_golden, painted_text, wait_for, wait_for_text
from tests.tui.wizard import SIZES, home, next_step, paste, press, rows_file, same_everywhere, screen, settled, type_into, wizard
from tui import draft_file as drafts
from tui.draft import Draft
from tui.forms import COLUMNS, FORMAT, REWARDS, TRAIN
from tui.screens.help import HelpScreen
from tui.screens.new_run.mapping import MappingAside
from tui.screens.new_run.method import MethodStep

__all__ = ["home"]  # a fixture

BEYOND = "the embedded model reads arithmetic; choose a model of yours for this"
TRL = {
    "model_name_or_path": "demo",
    "dataset_name": "rows.jsonl",
    "loss_type": "dr_grpo",
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "lora_r": 8,
    "lora_alpha": 16,
    "max_steps": 20,
    "report_to": "wandb",
    "rewards": [{"name": "answer"}],
}


async def test_a_profile_sets_rewards_and_sample_rows_and_none_puts_back_what_was_typed(home: Path) -> None:
    typed = "[{name: exact}]"
    drafts.save(Draft("gspo").with_text(REWARDS, typed), home)
    async with wizard(home) as pilot:
        assert "tried on   decisive steps (p:" in painted_text(pilot.app)
        shown = await press(pilot, "p")
        assert "new run › method › profile" in shown and "▸ none" in shown
        assert shown.index("decisive steps") < shown.index("multi-step chains") < shown.index("legal"), "gspo's own first"
        for size in SIZES:
            await pilot.resize_terminal(*size)
            check_golden(f"new_run_profile_{size[0]}x{size[1]}", await press(pilot, *["k"] * 5))
        assert screen(pilot).draft.text(REWARDS) == typed, "nothing is set by looking"
        shown = await press(pilot, "enter")
        assert "decisive steps: rewards number, step_coverage, format; g on the data screen makes rows for them" in shown
        assert BEYOND in shown and "chosen: decisive steps" in shown and "1 of 5" in shown
        set_ = [(r["name"], r["weight"]) for r in yaml.safe_load(screen(pilot).draft.text(REWARDS))]
        assert set_ == [("number", 1.0), ("step_coverage", 0.5), ("format", 0.2)]

        await next_step(pilot, 2)
        await press(pilot, "g")
        made = home / "data" / "gspo-decisive-reasoning-sample.jsonl"
        await wait_for(pilot, lambda: screen(pilot).draft.text(TRAIN) == str(made), "the rows")
        assert "sparse_indicators" in json.loads(made.read_text().partition("\n")[0])
        shown = await wait_for_text(pilot, "full marks")
        assert "profile   decisive steps; g makes rows for it" in shown and BEYOND in shown
        await press(pilot, "p", "j")
        await press(pilot, "enter")
        await press(pilot, "g")
        other = str(home / "data" / "gspo-chains-reasoning-sample.jsonl")
        await wait_for(pilot, lambda: screen(pilot).draft.text(TRAIN) == other, "other rows")
        await press(pilot, "p", "pagedown")
        shown = await press(pilot, "enter")
        assert "no profile: the rewards are what they were before" in shown and BEYOND not in shown
        assert screen(pilot).draft.text(REWARDS) == typed


async def test_for_sft_a_profile_gives_rows_alone_and_a_question_can_be_left(home: Path) -> None:
    async with wizard(home) as pilot:
        await press(pilot, "k")
        shown = await press(pilot, "p", "k")
        assert "none: sft has no rewards" in shown
        await press(pilot, "escape")
        assert screen(pilot).draft == Draft("sft") and isinstance(screen(pilot).step, MethodStep)
        await press(pilot, "p", "k")
        shown = await press(pilot, "enter")
        assert "legal: g on the data screen makes its rows" in shown and BEYOND in shown
        assert screen(pilot).draft.changes() == () and screen(pilot).draft.sample() == ("law", "reasoning")
        await press(pilot, "question_mark")
        assert isinstance(pilot.app.screen, HelpScreen)
        for sentence in ("Choose a kind of data", "Say which column", "Open a config file", "where each value comes from"):
            await wait_for_text(pilot, sentence)
        await press(pilot, "escape")
        await press(pilot, "c")
        assert "\n q" in await press(pilot, "q"), "letters are the line's"


async def test_columns_are_chosen_by_keys_with_the_first_row_as_it_will_be_read(home: Path) -> None:
    rows = [{"id": n, "question": f"What is {n}+1?", "label": str(n + 1), "[/x]\x1b": "\x1b[31m"} for n in range(10, 14)]
    data = rows_file(home, *rows)
    drafts.save(Draft().with_text(TRAIN, str(data)), home)
    async with wizard(home, step=2) as pilot:
        shown = await wait_for_text(pilot, "format unknown")
        assert "press m to say which column is which" in await wait_for_text(pilot, "remedy")
        await press(pilot, "m")
        shown = await wait_for_text(pilot, "choose above, by left and right, which column is which")
        assert "none that is known" in shown and "prompt            ✕ not chosen" in shown
        shown = await press(pilot, "j", "right", "right")
        assert "▸ prompt            question  = What is 10+1?" in shown
        shown = await press(pilot, "j", "l", "l", "l", "h", "right")
        assert "▸ answer            label     = 11" in shown
        await wait_for_text(pilot, "prompt+answer, found in the rows")
        for size in SIZES:
            await pilot.resize_terminal(*size)
            await settled(pilot)
            check_golden(f"new_run_columns_{size[0]}x{size[1]}", same_everywhere(painted_text(pilot.app), home))
        shown = await press(pilot, "j", "left")
        assert "▸ system            [/x]␛     = ␛[31m" in shown and "\x1b" not in shown
        await press(pilot, "right", "enter")
        shown = await wait_for_text(pilot, "✓ ready: 4 rows, 4 usable, format prompt+answer")
        assert "format auto; prompt is question, answer is label" in shown
        assert screen(pilot).draft.text(COLUMNS) == "{prompt: question, answer: label}"

        await press(pilot, "m")
        await wait_for_text(pilot, "prompt+answer, found in the rows")
        shown = await press(pilot, "right", "right")
        assert "format            messages" in shown or "format            gsm8k" in shown
        assert "the first row" in shown and "✕" in shown
        await press(pilot, "escape")
        assert screen(pilot).draft.text(FORMAT) == "auto", "left as it was"
        await press(pilot, "m")
        await wait_for_text(pilot, "prompt+answer, found in the rows")
        await press(pilot, "ctrl+r")
        shown = await wait_for_text(pilot, "none that is known")
        await press(pilot, "enter")
        await wait_for(pilot, lambda: screen(pilot).draft.text(COLUMNS) == "{}", "the columns as found")

        await type_into(pilot, TRAIN, "nowhere.jsonl")
        await press(pilot, "m")
        await wait_for_text(pilot, "✕ ")
        shown = await press(pilot, "enter")
        assert isinstance(screen(pilot).step, MappingAside) and "no such data file" in shown


async def test_a_config_of_another_tool_is_opened_with_its_notes_and_origins(home: Path) -> None:
    rows_file(home, {"prompt": "What is 1+1?", "answer": "2"}, {"prompt": "What is 1+2?", "answer": "3"})
    file, ambiguous = home / "trl.yaml", home / "amb.yaml"
    file.write_text(yaml.safe_dump(TRL))
    ambiguous.write_text("model: demo\nmethod: grpo\ndata: {train: rows.jsonl}\nrewards: [{name: answer}]\ndelta: 4.0\n")
    loaded = configs.load(file)
    async with wizard(home) as pilot:
        await press(pilot, "c")
        await paste(pilot, str(home / "am"))
        await wait_for(pilot, lambda: "amb.yaml" in painted_text(pilot.app), "the rest of the name")
        await press(pilot, "tab")
        await pilot.press("enter")
        shown = " ".join((await wait_for_text(pilot, "delta means two things")).split())
        assert (
            "in TRL: objective.delta here" in shown and "in mlx-lm-lora: an option" in shown and "write objective.delta" in shown
        )
        await paste(pilot, str(home / "nothing.yaml"))
        await pilot.press("enter")
        await wait_for_text(pilot, "no such config file")
        assert screen(pilot).draft == Draft()

        await paste(pilot, str(file))
        await pilot.press("enter")
        shown = await wait_for_text(pilot, "✓ dr_grpo:")
        assert "sampling.group_size" in shown and "4  from TRL: num_generations" in shown
        for size in SIZES:
            await pilot.resize_terminal(*size)
            await settled(pilot)
            check_golden(f"new_run_opened_{size[0]}x{size[1]}", same_everywhere(painted_text(pilot.app), home))
        await press(pilot, "end")
        assert "ignored: report_to" in await wait_for_text(pilot, "note")
        await press(pilot, "enter")
        shown = await wait_for_text(pilot, "opened /tmp")
        assert "▸ dr_grpo" in shown and "notes, which the review shows" in shown
        ready = screen(pilot).checked.ready
        assert ready is not None and configs.dump(ready) == configs.dump(loaded.config)

        for number in (2, 3, 4, 5):
            await next_step(pilot, number)
        await press(pilot, "o")
        shown = await wait_for_text(pilot, "ignored: report_to")
        assert "opened  /tmp" in shown
        shown += await press(pilot, "pagedown") + await press(pilot, "pagedown")
        assert "TRL: num_generations" in shown and "TRL: lora_r" in shown
        await press(pilot, "q")
    kept = drafts.load(home)
    assert kept is not None and kept.opened is not None and kept.opened.origin["rl/sampling.group_size"] == "TRL: num_generations"
    changed = kept.with_text("sampling.group_size", "6").checked(Path.cwd())
    assert changed.origin["sampling.group_size"] == "typed" and changed.origin["adapter.rank"] == "TRL: lora_r"
