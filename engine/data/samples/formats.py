"""One function per data format: a problem goes in, a row comes out. `reasoning` holds everything, the others what they can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.data import chains
from engine.data.samples.problem import Domain, Problem
from engine.rewards.words import words

Row = dict[str, Any]


def _reasoning(problem: Problem) -> Row:
    row: Row = {
        "problem": problem.question,
        "reasoning_steps": problem.chain,
        "solution": problem.solution,
        "answer": problem.answer,
        "efficiency_markers": {"target_words": len(words(problem.completion))},
    }
    if problem.domain is not None or any(step.mark for step in problem.steps):
        row["sparse_indicators"] = [step.mark for step in problem.steps]
    return row if problem.domain is None else row | _described(problem.domain)


def _prompt_completion(problem: Problem) -> Row:
    return {"prompt": problem.question, "completion": problem.completion} | _system(problem)


def _prompt_answer(problem: Problem) -> Row:
    return {"prompt": problem.question, "answer": problem.answer} | _system(problem)


def _gsm8k(problem: Problem) -> Row:
    """The number alone stands behind ####, as in GSM8K; of an answer that is a date there is none."""
    number = problem.answer.split()[-1 if problem.answer.startswith("pH") else 0]
    return {"question": problem.question, "answer": "\n".join([*problem.chain, f"#### {number}"])} | _system(problem)


def _messages(problem: Problem) -> Row:
    system = [{"role": "system", "content": text} for text in _system(problem).values()]
    turns = (("user", problem.question), ("assistant", problem.completion))
    return {"messages": [*system, *({"role": role, "content": content} for role, content in turns)]}


def _instruction(problem: Problem) -> Row:
    return {"instruction": problem.question, "input": "", "output": problem.completion} | _system(problem)


def _text(problem: Problem) -> Row:
    return {"text": "\n".join([problem.question, *problem.chain, problem.solution])}


def _described(domain: Domain) -> Row:
    context = {"required_terms": domain.terms, "units": domain.units, "conventions": domain.conventions}
    return {
        "domain": domain.name,
        "expertise_level": domain.level,
        "domain_context": {name: list(texts) for name, texts in context.items()},
    }


def _system(problem: Problem) -> Row:
    """What the domain's fields become in a prompt, for formats that have none of them."""
    return {} if problem.domain is None else {"system": chains.domain_prompt(_described(problem.domain))}


RENDERERS: Mapping[str, Callable[[Problem], Row]] = {
    "reasoning": _reasoning,
    "prompt+completion": _prompt_completion,
    "prompt+answer": _prompt_answer,
    "gsm8k": _gsm8k,
    "messages": _messages,
    "instruction": _instruction,
    "text": _text,
}


def render(problem: Problem, format: str) -> Row:
    """The problem as a row of the format."""
    return RENDERERS[format](problem)
