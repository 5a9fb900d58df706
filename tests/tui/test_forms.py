"""The form and the draft, without a screen: which fields a method has, text to value and back, checks that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import config as configs
from engine import methods, share
from engine.errors import InputError
from engine.profiles import PROFILES
from tui import draft_file as drafts
from tui import forms
from tui.draft import Draft, Opened
from tui.forms import COLUMNS, MODEL, REWARDS, TRAIN, VALID

HERE = Path(__file__).parent


def keys(method: str) -> set[str]:
    return {field.key for field in forms.fields(method)}


def test_a_method_has_the_fields_that_it_uses() -> None:
    """Supervised training samples nothing and has no rewards; a reward method may neither drop out nor choose targets."""
    sft, grpo = keys("sft"), keys("grpo")
    assert grpo - sft == {
        *("sampling.group_size", "sampling.temperature", "rewards"),
        *(f"objective.{name}" for name in configs.ObjectiveConfig.model_fields),
    }
    assert sft - grpo == {"adapter.dropout", "data.targets", "data.decisive_weight"}
    assert {"run.steps", "optim.learning_rate", "sampling.prompts_per_step", "data.format"} <= sft & grpo
    assert not {"method", MODEL, TRAIN, VALID} & (sft | grpo)


def test_every_key_of_the_config_is_a_field() -> None:
    config = configs.load(share.share_root("configs") / "grpo.yaml").config
    tree = config.model_dump()
    leaves = {f"{name}.{key}" for name, section in tree.items() if isinstance(section, dict) for key in section}
    leaves |= {name for name, value in tree.items() if not isinstance(value, dict)}
    assert set(forms.all_fields()) == leaves


@pytest.mark.parametrize("method", methods.METHODS)
def test_an_untouched_draft_is_its_recipe(method: str) -> None:
    checked = Draft(method).checked(HERE)
    assert checked.ready == configs.load(share.share_root("configs") / f"{method}.yaml").config
    assert Draft(method).changes() == ()


@pytest.mark.parametrize("method", methods.METHODS)
def test_typing_what_is_shown_changes_nothing(method: str) -> None:
    draft = Draft(method)
    for field in forms.fields(method):
        assert draft.with_text(field.key, draft.text(field.key)) == draft
    forced = Draft(method, {f"{methods.method(method).kind}/{f.key}": draft.text(f.key) for f in forms.fields(method)})
    assert forced.checked(HERE).errors == {}
    assert configs.dump(forced.checked(HERE).config) == configs.dump(draft.checked(HERE).config)


def test_the_methods_own_defaults_are_shown() -> None:
    """Dr. GRPO's row says advantage none; what its recipe leaves out (the ratio) is the row's."""
    draft = Draft("dr_grpo")
    assert (draft.text("objective.advantage"), draft.text("objective.ratio")) == ("none", "token")
    assert Draft("gspo").text("objective.ratio") == "sequence"


def test_another_model_starts_from_the_defaults_and_brings_no_data() -> None:
    """The recipe's limits of 64 and 40 tokens and its rate of 1e-4 are for the embedded model's one-line sums."""
    draft = Draft("gspo").with_text(MODEL, "/models/mine")
    assert (draft.text(TRAIN), draft.text(VALID)) == ("", "")
    assert draft.text("sampling.max_completion_tokens") == "512" and draft.text("optim.learning_rate") == "1e-05"
    assert draft.text("objective.epsilon_low") == "0.0003"
    assert draft.text("rewards") == "[{name: answer, weight: 1.0}]"
    assert draft.with_text(MODEL, "demo") == Draft("gspo")


def test_another_training_file_leaves_the_recipes_held_out_file_behind() -> None:
    draft = Draft().with_text(TRAIN, "mine.jsonl")
    assert draft.text(VALID) == "" and draft.checked(HERE).ready.data.valid is None
    assert draft.with_text(VALID, "held.jsonl").text(VALID) == "held.jsonl"


def test_what_was_typed_for_a_method_is_there_on_coming_back() -> None:
    draft = Draft("grpo").with_text("objective.beta", "0.04").with_text("run.steps", "7").with_text("rewards", "[{name: number}]")
    gspo, sft = draft.with_method("gspo"), draft.with_method("sft")
    assert (gspo.text("objective.beta"), gspo.text("run.steps"), gspo.text("rewards")) == ("0", "7", "[{name: number}]")
    assert (sft.text("run.steps"), sft.changes()) == ("60", ())
    assert sft.with_method("grpo") == draft


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_types_rewards_that_the_config_takes_and_none_puts_back_what_was_there(name: str) -> None:
    for before in (Draft("gspo"), Draft("gspo").with_text(REWARDS, "[{name: exact}]")):
        chosen = before.with_profile(name)
        checked = chosen.checked(HERE)
        assert checked.ready is not None, checked.errors
        assert [(r.name, r.weight) for r in checked.ready.rewards] == [(r["name"], r["weight"]) for r in PROFILES[name].rewards]
        assert checked.origin[REWARDS] == f"profile {PROFILES[name].title}"
        assert chosen.sample() == (PROFILES[name].topic, PROFILES[name].format)
        assert chosen.with_profile("legal").with_profile("chains").with_profile(None) == before


def test_rewards_that_are_typed_over_a_profiles_are_the_users_own() -> None:
    own = Draft().with_profile("medical").with_text(REWARDS, "[{name: exact}]")
    assert own.with_profile(None).text(REWARDS) == "[{name: exact}]"
    assert own.with_profile("legal").with_profile(None).text(REWARDS) == "[{name: exact}]"
    assert own.checked(HERE).origin[REWARDS] == "typed"


def test_a_profile_is_chosen_for_a_kind_of_method_and_sft_gets_rows_alone() -> None:
    draft = Draft("sft").with_profile("scientific")
    assert (draft.changes(), draft.sample()) == ((), ("science", "reasoning"))
    assert draft.checked(HERE).ready == Draft("sft").checked(HERE).ready
    grpo = draft.with_method("grpo")
    assert grpo.profile is None and grpo.sample() == ("arithmetic", None)
    assert grpo.with_text(MODEL, "/models/mine").sample() == ("words", None)


def test_only_the_embedded_model_is_too_small_for_a_profile() -> None:
    draft = Draft().with_profile("legal")
    assert "the embedded model reads arithmetic" in draft.beyond_model
    assert draft.with_text(MODEL, "/models/mine").beyond_model == Draft().beyond_model == ""


OPENED = {
    "ours": "model: demo\nmethod: gspo\ndata: {train: x.jsonl, columns: {prompt: q}}\nrewards: [{name: number}]\n"
    "run: {steps: 40}\n",
    "sft of mlx_lm.lora": "model: demo\ntrain: true\ndata: x.jsonl\niters: 7\n"
    "lora_parameters: {rank: 4, scale: 2.0, dropout: 0.1}\n",
    "grpo of mlx-lm-lora": "model: demo\ntrain_mode: grpo\ndata: x.jsonl\niters: 7\ngroup_size: 3\nreward_weights: [1.0]\n"
    "reward_functions: r1_accuracy_reward_func\n",
    "grpo of TRL": "model_name_or_path: demo\ndataset_name: x.jsonl\nloss_type: dapo\nnum_generations: 4\nbeta: 0.1\n"
    "rewards: [{name: number, timeout: .inf}]\n",
}


@pytest.mark.parametrize("name", OPENED)
@pytest.mark.parametrize("before", [Draft(), Draft("gspo").with_text(MODEL, "/models/mine").with_text("run.steps", "9")], ids=str)
def test_an_opened_config_runs_as_its_file_does(tmp_path: Path, name: str, before: Draft) -> None:
    """What a form of the method has no field for (the rewards' group size in supervised training) has no effect either."""
    (tmp_path / "x.jsonl").write_text('{"prompt": "p", "answer": "a", "q": "q"}\n')
    file = tmp_path / "config.yaml"
    file.write_text(OPENED[name])
    loaded = configs.load(file)
    draft = before.with_profile("legal").with_config(loaded, str(file))
    checked = draft.checked(HERE)
    assert checked.ready is not None, checked.errors
    assert configs.dump(checked.ready) == configs.dump(loaded.config)
    used = {MODEL, TRAIN, VALID, *keys(loaded.config.method)} - {COLUMNS}  # whose origin is its entries'
    assert {key: checked.origin[key] for key in used} == {key: loaded.origin[key] for key in used}
    assert draft.profile is None and draft.opened is not None and draft.opened.notes == loaded.notes
    assert draft.came_with_file(TRAIN) and not draft.with_text(TRAIN, "other.jsonl").came_with_file(TRAIN)


def test_origins_follow_what_is_typed(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(OPENED["ours"])
    draft = Draft().with_config(configs.load(file), str(file)).with_text("run.seed", "3").with_text("run.steps", "41")
    origin = draft.checked(HERE).origin
    wanted = {
        "method": "file",
        "rewards": "file",
        COLUMNS: "file",
        "run.seed": "typed",
        "run.steps": "typed",
        "optim.eps": "default",
    }
    assert {key: origin[key] for key in wanted} == wanted
    assert draft.with_text("run.steps", "40").checked(HERE).origin["run.steps"] == "recipe", "gspo's recipe has 40 steps, too"
    assert draft.with_method("grpo").checked(HERE).origin["method"] == "chosen"
    moved = Draft().with_config(configs.load(file), str(file)).with_text(MODEL, "/models/mine")
    assert moved.text("run.steps") == "40", "the file's, although it was the recipe's, too, and for this model the start is 200"


BAD = {  # field -> (typed, what the error must hold)
    "optim.learning_rate": ("abc", "valid number"),
    "run.steps": ("0", "greater than or equal to 1"),
    "run.seed": ("1.5", "valid integer"),
    "adapter.type": ("lorra", "'lora'"),
    "adapter.keys": ("[a", "not valid YAML"),
    "data.columns": ("{prompt: [}", "not valid YAML"),
    "optim.betas": ("[0.9]", ""),
    "optim.warmup": ("2001-99-99", "month must be"),
    "rewards": ("[{nam: answer}]", ""),
    "sampling.group_size": ("1", "no baseline"),
    "sampling.temperature": ("", "valid number"),
    "objective.delta": ("1.1", "must exceed"),
    "objective.minibatches": ("99", ""),
    "objective.surrogate": ("cispo", ""),
}


@pytest.mark.parametrize("key", BAD)
def test_an_error_belongs_to_its_field_and_has_a_remedy(key: str) -> None:
    text, what = BAD[key]
    draft = Draft("gspo" if key == "objective.surrogate" else "grpo").with_text(key, text)
    errors = draft.checked(HERE).errors
    other = {"objective.minibatches": "sampling.prompts_per_step", "objective.surrogate": "objective.ratio"}.get(key, key)
    assert list(errors) == [other]
    assert what in errors[other].what and errors[other].remedy
    assert draft.text(key) == text


def test_every_wrong_field_is_named_at_once_and_the_rest_is_a_config() -> None:
    draft = Draft()
    for key in ("optim.learning_rate", "run.steps", "adapter.keys"):
        draft = draft.with_text(key, BAD[key][0])
    checked = draft.with_text("run.eval_every", "3").checked(HERE)
    assert set(checked.errors) == {"optim.learning_rate", "run.steps", "adapter.keys"}
    assert checked.ready is None
    assert (checked.config.run.eval_every, checked.config.run.steps) == (3, 40)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "~no-such-user-here/a"])
def test_a_name_that_no_file_can_have_is_an_error_of_its_field(name: str) -> None:
    for key in (MODEL, TRAIN, VALID):
        assert list(Draft().with_text(key, name).checked(HERE).errors) == [key]


@settings(deadline=None)
@given(key=st.sampled_from(sorted(keys("grpo"))), text=st.text(max_size=40))
def test_no_text_breaks_the_form(key: str, text: str) -> None:
    draft = Draft().with_text(key, text)
    checked = draft.checked(HERE)
    assert checked.ready is not None or checked.errors
    assert draft.text(key) == text


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False), lambda inner: st.lists(inner, max_size=3)
    )
)
def test_a_shown_value_reads_back(value: object) -> None:
    field = forms.all_fields()["adapter.keys"]
    assert forms.read(field, forms.show(value)) == value


def test_help_says_meaning_choices_and_bounds() -> None:
    fields = forms.all_fields()
    assert fields["optim.schedule"].help == "over all updates, after the warm-up; one of constant, linear, cosine"
    assert fields["run.steps"].help == "at least 1"
    assert fields["optim.warmup"].bounds == "at least 0 and below 1"
    assert fields["objective.epsilon_low"].bounds == "above 0"


def test_a_draft_is_kept_and_forgotten(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert drafts.load(home) is None
    opened = Opened("\x1b[31m.yaml", "gspo", {"model": "file"}, ("a: note",))
    typed = {"rl/run.steps": "\x1b[31m", "model": "a: [b", "gspo/objective.beta": "\u202e"}
    draft = Draft("gspo", typed, {"rl": "legal", "sft": "chains"}, "[{name: exact}]", opened)
    drafts.save(draft, home)
    assert drafts.load(home) == draft
    assert [path.name for path in home.iterdir()] == ["draft.yaml"]
    drafts.discard(home)
    drafts.discard(home)
    assert drafts.load(home) is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "method: nothing\ntyped: {}\n",
        "method: grpo\n",
        "\x00",
        "method: grpo\ntyped: 3\n",
        "method: grpo\ntyped: {}\nprofiles: {rl: none}\n",
    ],
)
def test_a_damaged_draft_is_set_aside(tmp_path: Path, text: str) -> None:
    drafts.draft_file(tmp_path).write_text(text)
    with pytest.raises(InputError, match="set aside"):
        drafts.load(tmp_path)
    assert drafts.load(tmp_path) is None
    assert (tmp_path / "draft.damaged.yaml").read_text() == text


def test_a_draft_that_cannot_be_saved_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(InputError, match="cannot be saved"):
        drafts.save(Draft(), tmp_path / "home")


def test_the_saved_draft_is_plain_yaml(tmp_path: Path) -> None:
    drafts.save(Draft().with_text("run.steps", "7"), tmp_path)
    assert yaml.safe_load(drafts.draft_file(tmp_path).read_text()) == {"method": "grpo", "typed": {"rl/run.steps": "7"}}
