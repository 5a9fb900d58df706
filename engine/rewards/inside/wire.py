"""How tester and candidate talk: JSON lines that carry plain data as copies, and everything else as a number that stands for it.

Plain: None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, range, Fraction and Decimal. A subclass
arrives as what it is derived from: so no value brings along an `==` of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

_EXACT = 2**53  # larger whole numbers travel as text, in hexadecimal: decimal text has a limit of 4,300 digits
_MESSAGE_BYTES = 8 << 20

Message = dict[str, Any]


class Gone(BaseException):
    """The other side has ended, or what it sends is no message. No `except Exception` of a test hides it."""


def encode(value: Any, other: Callable[[Any], Message]) -> Any:
    """`value` as JSON can carry it; `other` encodes what is not plain."""
    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, int):
        return int(value) if -_EXACT < value < _EXACT else {"int": hex(value)}
    if isinstance(value, list):
        return [encode(item, other) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key, other), encode(item, other)] for key, item in value.items()]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item, other) for item in value]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, Decimal):
        return {"decimal": str(value)}
    if isinstance(value, Fraction):
        return {"fraction": [encode(value.numerator, other), encode(value.denominator, other)]}
    if isinstance(value, range):
        return {"range": [encode(bound, other) for bound in (value.start, value.stop, value.step)]}
    return other(value)


def decode(data: Any, other: Callable[[str, int], Any]) -> Any:
    """The value that `encode` was given; `other` finds what is not plain. Gone where `data` is nothing that encode writes."""
    if not isinstance(data, list | dict):
        return data
    if isinstance(data, list):
        return [decode(item, other) for item in data]
    try:
        ((kind, body),) = data.items()
        if kind in ("object", "function"):
            return other(kind, int(body))
        if kind == "int":
            return int(body, 16)
        if kind == "bytes":
            return bytes.fromhex(body)
        if kind == "decimal":
            return Decimal(body)
        if kind == "dict":
            return {decode(key, other): decode(item, other) for key, item in body}
        kinds = {"tuple": tuple, "set": set, "frozenset": frozenset}
        items = [decode(item, other) for item in body]
        return kinds[kind](items) if kind in kinds else {"complex": complex, "fraction": Fraction, "range": range}[kind](*items)
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise Gone(f"not a message: {error}") from error


class Line:
    """One end of the conversation. Whoever asks answers, until its own answer comes, what the other side asks meanwhile."""

    def __init__(self, descriptors: list[int], answer: Callable[[Message], Message]) -> None:
        self._incoming, self._outgoing = os.fdopen(descriptors[0], "rb"), descriptors[1]
        self._answer = answer

    def ask(self, request: Message) -> Message:
        """The answer to `request`, which has the key `op` as no answer has."""
        self.send(request)
        while True:
            message = self.receive()
            if "op" not in message:
                return message
            self.send(self._answer(message))

    def send(self, message: Message) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self._outgoing, data) :]
        except OSError as error:
            raise Gone("the other side has ended") from error

    def receive(self) -> Message:
        line = self._incoming.readline(_MESSAGE_BYTES)
        if not line.endswith(b"\n"):
            raise Gone("the other side has ended" if len(line) < _MESSAGE_BYTES else "its message is too long")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Gone("not a message") from error
        if not isinstance(message, dict):
            raise Gone("not a message")
        return message


def raised(error: BaseException) -> Message:
    """The answer to a request that raised: the names of the error's class and of its bases, nearest first, and its text."""
    return {"raised": [kind.__name__ for kind in type(error).__mro__], "text": str(error)[:1000]}
