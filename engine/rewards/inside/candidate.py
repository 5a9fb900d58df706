"""The program that is judged: runs it, then does with its functions and objects what the tester asks for.

It sees the arguments that the tests call it with, never what they expect.
"""

from __future__ import annotations

import operator
import os
from typing import Any, NoReturn

from engine.rewards.inside.wire import Line, Message, decode, encode, raised

BINARY = ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_")
_OPERATIONS: dict[str, Any] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "isinstance": lambda kind, value: isinstance(value, kind),
    **{name: getattr(operator, name) for name in BINARY},
}


class TestersFunction:
    """A function that a test passes as an argument; it runs over there."""

    def __init__(self, candidate: Candidate, number: int) -> None:
        self._candidate = candidate
        self.number = number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._candidate.call_back(self.number, args, kwargs)


class Candidate:
    def __init__(self, descriptors: list[int]) -> None:
        self._line = Line(descriptors, self._answer)
        self._globals: dict[str, Any] = {"__name__": "program"}  # `if __name__ == "__main__":` is for programs that are run
        self._objects: list[Any] = []

    def serve(self, program: str) -> NoReturn:
        try:
            exec(compile(program, "program.py", "exec"), self._globals)
        except BaseException as error:  # noqa: BLE001  # the program may raise anything, even SystemExit
            self._line.send(raised(error))
        else:
            self._line.send({"ready": True})
        while True:
            self._line.send(self._answer(self._line.receive()))

    def call_back(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        coded = {key: self._encode(value) for key, value in kwargs.items()}
        answer = self._line.ask({"op": "call", "function": number, "args": self._encode(list(args)), "kwargs": coded})
        if "raised" in answer:
            raise RuntimeError(answer["text"])
        return self._decode(answer["value"])

    def _answer(self, request: Message) -> Message:
        try:
            if request["op"] == "names":
                return {"names": {name: self._name(self._globals[name]) for name in request["names"] if name in self._globals}}
            args = self._decode(request["args"])
            kwargs = {key: self._decode(value) for key, value in request["kwargs"].items()}
            value = self._encode(_OPERATIONS[request["op"]](*args, **kwargs))
            # A function may change a list that it is given: the tester's own follows.
            changed = [self._encode(arg) if isinstance(arg, list | dict | set) else None for arg in args]
            return {"value": value, "changed": changed}
        except BaseException as error:  # noqa: BLE001  # whatever it is, the test that called decides what it means
            return raised(error)

    def _name(self, value: Any) -> Any:
        if isinstance(value, type) and issubclass(value, Exception):
            return {"exception": [kind.__name__ for kind in value.__mro__]}
        return self._encode(value)

    def _encode(self, value: Any) -> Any:
        return encode(value, self._other)

    def _other(self, value: Any) -> Message:
        if isinstance(value, TestersFunction):
            return {"function": value.number}
        self._objects.append(value)
        return {"object": len(self._objects) - 1}

    def _decode(self, data: Any) -> Any:
        return decode(data, lambda kind, number: TestersFunction(self, number) if kind == "function" else self._objects[number])


def main(payload: dict[str, Any]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # what it prints is no part of the verdict
    Candidate(payload["descriptors"]).serve(payload["program"])
