"""Extraction and comparison of answers, and the strict layout."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.rewards.answers import extract_answer, last_number, normalise, same_number, same_text
from engine.rewards.format import has_format


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>1</answer> or <answer> 2 </answer>", "2"),
        ("<answer>\n4\n</answer> and more", "4"),
        ("<answer> I mean <answer>5</answer>", "5"),
        ("<answer>5</answer> and an unclosed <answer> 6", "5"),
        ("<think>3? <answer>9</answer></think> 7", "9"),
        ("<think>a</think> b </think> 7 ", "7"),
        ("</answer> stray <answer>", "</answer> stray <answer>"),
        ("  plain  ", "plain"),
        ("<answer></answer>", ""),
        ("", ""),
    ],
)
def test_extract_answer(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


def test_extraction_of_a_long_hostile_text_is_fast() -> None:
    """Quadratic matching would take hours on 4 million characters of opening tags."""
    assert extract_answer("<answer>" * 500_000).startswith("<answer>")
    assert last_number("-" * 1_000_000 + "1," * 500_000 + "7") == 7


@pytest.mark.parametrize(("left", "right"), [("The  Cat.", "the cat"), ("A\n b", "a B"), ("straße", "STRASSE"), ("42 .", "42")])
def test_normalise_ignores(left: str, right: str) -> None:
    assert normalise(left) == normalise(right)


@pytest.mark.parametrize(("left", "right"), [("cat", "cats"), ("4", "4.0"), ("1..", "1"), ("", "0")])
def test_normalise_keeps(left: str, right: str) -> None:
    assert normalise(left) != normalise(right)


def test_same_text_extracts_from_both() -> None:
    """A reference may be a whole reply: that is what the completion of a prompt+completion row is."""
    assert same_text("<think>x</think><answer>Paris.</answer>", "paris")
    assert same_text("Paris", "<think>capital</think><answer>paris</answer>")
    assert not same_text("It is Paris", "Paris")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("It is 42.", "42"),
        ("1, 2, 3", "3"),
        ("1,2,3", "3"),
        ("$1,234.50", "1234.5"),
        ("1,234,567 people", "1234567"),
        ("50%", "50"),
        ("-5", "-5"),
        ("\u22125", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("24-9", "9"),
        ("(3)-2", "2"),
        ("x = -2", "-2"),
        ("+7", "7"),
        (".5", "1/2"),
        ("-.5", "-1/2"),
        ("3/4", "3/4"),
        ("-3 / 4", "-3/4"),
        (r"$-\frac{3}{4}$", "-3/4"),
        (r"\boxed{12}", "12"),
        ("2e-3", "1/500"),
        ("1e3 m", "1000"),
        ("50 m2 of H2O", "50"),
    ],
)
def test_last_number(text: str, value: str) -> None:
    assert last_number(text) == Fraction(value)


@pytest.mark.parametrize("text", ["", "none", "H2O", "٤٢", "４２", "3/0", "1" * 5000, "-", "$", "e5"])
def test_no_number(text: str) -> None:
    assert last_number(text) is None


@pytest.mark.parametrize("text", ["1e999999999", "1.5e999999999", "12E+0001"])
def test_huge_exponents_are_no_numbers(text: str) -> None:
    """1e999999999 as an exact fraction would fill the memory: exponents have at most three digits."""
    assert last_number(text) is None


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(-(10**15), 10**15), st.integers(0, 6))
def test_numbers_survive_formatting(digits: int, places: int) -> None:
    """Exact for any decimal, grouped with commas or not: no float is involved."""
    value = Fraction(digits, 10**places)
    whole, rest = divmod(abs(digits), 10**places)
    tail = f".{rest:0{places}d}" if places else ""
    sign = "-" if digits < 0 else ""
    assert last_number(f"so it is {sign}{whole}{tail}") == value
    assert last_number(f"so it is {sign}${whole:,}{tail} in all.") == value


def test_same_number() -> None:
    assert same_number("<answer>1,000.0 dollars</answer>", "1000") is True
    assert same_number("0.75", "3/4") is True
    assert same_number("I do not know", "3") is False
    assert same_number("<think>3</think> four", "3") is False
    assert same_number("3", "three") is None


@pytest.mark.parametrize(
    "text",
    [
        "41 or 42",
        "1 2 3 4 5 42",
        "41, 42",
        "41/40/42",
        "41\n42",
        "41 (or 42)",
        "**41** or **42**",
        "41, no, it is 42",
        "41 " + " " * 5000 + "42",
    ],
)
def test_several_numbers_side_by_side_are_no_answer(text: str) -> None:
    assert same_number(f"<answer>{text}</answer>", "42") is False


@pytest.mark.parametrize(
    "text", ["6*7=42", "50-8 = 42", "so 28 + 14 leaves 42 apples", "six times 7 is 42", "42 or 42.0", "84/2", "1) 42"]
)
def test_numbers_on_the_way_to_the_answer_are_no_offers(text: str) -> None:
    assert same_number(text, "42") is True


def test_a_list_is_right_where_the_reference_is_that_list() -> None:
    assert same_number("1, 2 and 3", "1, 2, 3") is True and same_number("1, 9, 3", "1, 2, 3") is False


@pytest.mark.parametrize(
    "text",
    ["<think>a</think><answer>b</answer>", " \n<think>\na\n</think>\n\n<answer>b</answer>\n"],
)
def test_has_format(text: str) -> None:
    assert has_format(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<answer>b</answer>",
        "<think>a</think>",
        "x <think>a</think><answer>b</answer>",
        "<think>a</think> x <answer>b</answer>",
        "<think>a</think><answer>b</answer> x",
        "<answer>b</answer><think>a</think>",
        "<think>a</think><answer>b</answer><answer>c</answer>",
        "<think>a<think>b</think></think><answer>c</answer>",
        "<think>a<answer>b</answer></think>",
        "<think>a</think><answer>b</answer",
        "<Think>a</Think><answer>b</answer>",
    ],
)
def test_has_not_the_format(text: str) -> None:
    assert not has_format(text)


def test_a_prompt_that_opens_the_thoughts() -> None:
    assert has_format("a</think><answer>b</answer>", "<|assistant|>\n<think>\n")
    assert not has_format("a</think><answer>b</answer>", "<|assistant|>\n")
    assert not has_format("<think>a</think><answer>b</answer>", "<|assistant|>\n<think>\n")
