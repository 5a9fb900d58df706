"""One question to an OpenAI-compatible server, by plain HTTP and without another library.

Left out on purpose: redirects, which could carry the key elsewhere, and proxies of the environment. A key goes over https, or
to this very machine; it is in no message.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from engine.errors import InputError

_REPLY_BYTES = 4 << 20
_AGAIN = (408, 409, 425, 429)  # and all from 500 on
_EXCERPT_CHARACTERS = 200
_PATH = "/chat/completions"

Message = dict[str, str]


class Transient(Exception):
    """May go better the next time. `why` is the same for all questions with the same fault; `detail` is this one's own."""

    def __init__(self, why: str, detail: str = "", after_seconds: float = 0.0) -> None:
        super().__init__(why)
        self.why = why
        self.detail = detail
        self.after_seconds = after_seconds  # the server wants to be left alone for so long


class Unreachable(Transient):
    """No connection was made."""


class Refused(Exception):
    """The server will not answer this one question."""

    def __init__(self, why: str, detail: str) -> None:
        super().__init__(why)
        self.why = why
        self.detail = detail


class Endpoint:
    """An address, with the key that opens it. Usable by many threads at once."""

    def __init__(self, url: str, api_key_env: str, timeout_seconds: float) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.query or parts.username:
            remedy = "give one like http://127.0.0.1:8080/v1; a key belongs in the environment variable that api_key_env names"
            raise InputError("the judge's url is no address", where="rewards.options", remedy=remedy)
        self._is_https, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._path = parts.path.rstrip("/").removesuffix(_PATH) + _PATH
        self._shown = f"{parts.scheme}://{parts.netloc}{self._path}"
        self._timeout_seconds = timeout_seconds
        self._key_name = api_key_env
        self._key = _key(api_key_env) if api_key_env else ""
        if self._key and not self._is_https and not _is_this_machine(self._host):
            remedy = "use https, or no key"
            raise InputError("the judge's key would be sent over the network for all to read", where=self._shown, remedy=remedy)

    def ask(self, model: str, messages: list[Message], max_tokens: int) -> str:
        """The text of the answer. Transient, Refused, or InputError for what no question of this run can get past."""
        body = {"model": model, "messages": messages, "temperature": 0.0, "max_tokens": max_tokens, "stream": False}
        status, headers, data = self._exchange(json.dumps(body).encode())
        if status == 200:
            return _content(data)
        excerpt = self._without_key(data.decode(errors="replace").strip())[:_EXCERPT_CHARACTERS]
        if status in (401, 403):
            remedy = f"put a valid key into the environment variable {self._key_name}"
            remedy = remedy if self._key_name else "name the environment variable with the key by the option api_key_env"
            raise InputError(f"the judge refuses the key (status {status})", where=self._shown, remedy=remedy)
        if status == 404:
            remedy = "correct the options `url` and `model`"
            raise InputError(f"the judge has no such address or model (status 404): {excerpt}", where=self._shown, remedy=remedy)
        if 300 <= status < 400:
            target = headers.get("location") or "elsewhere"
            remedy = "give that address as `url`"
            raise InputError(f"the judge's address leads to {target} (status {status})", where=self._shown, remedy=remedy)
        why = f"the judge answers with status {status}"
        if status in _AGAIN or status >= 500:
            raise Transient(why, excerpt, _seconds(headers.get("retry-after")))
        raise Refused(why, excerpt)

    def _exchange(self, body: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
        kind = http.client.HTTPSConnection if self._is_https else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout_seconds)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise Unreachable("no judge answers", f"{type(error).__name__}: {error}") from error
        late = threading.Event()
        # The connection's own timeout is for each piece of an answer: a server may send a byte now and then for ever.
        timer = threading.Timer(self._timeout_seconds, _cut, (connection.sock, late))
        timer.start()
        try:
            connection.request("POST", self._path, body, headers)
            response = connection.getresponse()
            data = response.read(_REPLY_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise Transient(f"the judge took longer than {self._timeout_seconds:g} s") from error
            raise Transient("the judge broke the connection off", f"{type(error).__name__}: {error}") from error
        finally:
            timer.cancel()
            connection.close()
        if late.is_set():
            raise Transient(f"the judge took longer than {self._timeout_seconds:g} s")
        return response.status, response.headers, data

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _cut(connected: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):  # it has ended by itself
        connected.shutdown(socket.SHUT_RDWR)


def _content(data: bytes) -> str:
    why = "the judge's reply is no chat completion"
    if len(data) > _REPLY_BYTES:
        raise Transient(why, f"it is longer than {_REPLY_BYTES} bytes")
    try:
        content: Any = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Transient(why, repr(data[:_EXCERPT_CHARACTERS])) from error
    if not isinstance(content, str):
        raise Transient(why, "its content is no text")
    return content


def _key(name: str) -> str:
    key = os.environ.get(name, "").strip()
    if not key:
        remedy = f"export {name}=..., or leave the option api_key_env out"
        raise InputError(f"the environment variable {name} holds no key", where="rewards.options", remedy=remedy)
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"what {name} holds is no key", where="rewards.options", remedy="it may hold no spaces and no odd signs")
    return key


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _seconds(text: str | None) -> float:
    """Of a Retry-After header; 0 where it holds none (a date is not read)."""
    return float(text) if text and text.isascii() and text.isdigit() else 0.0
