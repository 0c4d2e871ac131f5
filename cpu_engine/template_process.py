"""The chat template of a checkpoint, rendered in a process of its own with bounds of time and memory.

A template is code of the checkpoint, and Jinja does not bound what it does: nested loops, a text doubled forty times. In a process of its
own the kernel bounds it (RLIMIT_CPU, RLIMIT_AS): the conversation is refused, and the next one starts a new process. Requests and answers
are lines of JSON; the process ends when its standard input does, and so with the engine.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import subprocess  # noqa: TID251 - the template's process, which the kernel bounds
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cpu_engine.architecture import JsonObject, read_json
from cpu_engine.refusals import BadRequest, StartupError

_FILE = "chat_template.jinja"
_SECONDS = 2
"""Processor time of one conversation; one of 100,000 tokens takes a tenth of it."""
_BYTES = 1 << 30
"""Address space of the process."""
_BOUNDS = f"{_SECONDS} s of processor time or {_BYTES >> 30} GiB of memory"


class TemplateProcess:
    """Renders the conversations of one checkpoint; safe for concurrent use."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """Start the process; without a `default` among the `sources` there is none."""
        self._known = {"sources": dict(sources), "special_tokens": dict(special_tokens)}
        self._lock = threading.Lock()
        self._child = _Child(self._known) if "default" in sources else None

    def problem(self) -> str | None:
        """Wait until the process has read the template; return what is wrong with it, None if nothing is."""
        if self._child is None:
            return None
        answer = self._child.opening()
        return f"one that takes more than {_BOUNDS} to be read" if answer is None else answer.get("problem")

    def render(self, messages: Sequence[JsonObject], *, tools: object = None, arguments: JsonObject | None = None) -> str:
        """Return the prompt of `messages`; `arguments` (chat_template_kwargs) become the template's variables.

        Raises BadRequest when there is no template, it cannot make sense of the messages, or they cost it more than it may use.
        """
        if "default" not in self._known["sources"]:
            raise BadRequest("this checkpoint has no chat template: use /v1/completions", param="messages")
        with self._lock:
            answer = self._ask({"messages": messages, "tools": tools, "arguments": arguments})
        if answer is None:
            raise BadRequest(f"messages: the checkpoint's chat template takes more than {_BOUNDS} for them", param="messages")
        if "text" in answer:
            return str(answer["text"])
        place = answer["place"] or "messages"
        raise BadRequest(f"{place}: the checkpoint's chat template {answer['said']}", param=place)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ask(self, conversation: JsonObject) -> dict[str, Any] | None:
        """Return the answer of the process, None when it ended instead; the next conversation then finds a new one."""
        if self._child is None:
            self._child = _Child(self._known)
        ready = self._child.opening() is not None and self._child.write(conversation)
        answer = self._child.read() if ready else None
        if answer is None:
            self._end()
        return answer

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


class _Child:
    """The process, and its two pipes."""

    def __init__(self, known: JsonObject) -> None:
        argv = [sys.executable, "-m", "cpu_engine.template_process"]
        here = Path(__file__).resolve().parent.parent
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=here)  # noqa: S603
        self.write(known)
        self._opening: list[dict[str, Any] | None] = []

    def opening(self) -> dict[str, Any] | None:
        """Return its first answer, which comes when it has read the templates."""
        if not self._opening:
            self._opening.append(self.read())
        return self._opening[0]

    def write(self, value: object) -> bool:
        """Send a line; return False when the process has ended."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(json.dumps(value).encode() + b"\n")
                self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def read(self) -> dict[str, Any] | None:
        """Return the next answer, None when the process ended instead."""
        line = self._process.stdout.readline() if self._process.stdout is not None else b""
        answer: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return answer

    def end(self) -> None:
        """Kill it and wait for its end."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()


def read_chat_template(directory: Path, special_tokens: Mapping[str, str]) -> TemplateProcess:
    """Start the process for chat_template.jinja, else for `chat_template` of tokenizer_config.json.

    Raises StartupError when that is no text, or no list of named ones. Whether it parses, `check_template` asks later.
    """
    return TemplateProcess(_sources(directory), special_tokens)


def check_template(directory: Path, template: TemplateProcess) -> None:
    """Raise StartupError if the template does not parse."""
    if problem := template.problem():
        raise StartupError(f"{directory}: chat template", got=problem, expected="a Jinja template", remedy="correct the template")


def _sources(directory: Path) -> dict[str, str]:
    file = directory / _FILE
    config_file = directory / "tokenizer_config.json"
    if file.is_file():
        return {"default": file.read_text(encoding="utf-8")}
    value = read_json(config_file).get("chat_template") if config_file.is_file() else None
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    found = value if isinstance(value, dict) else {} if value is None else {"default": value}
    for source in found.values():
        if not isinstance(source, str):
            where = f"{config_file}: chat_template"
            raise StartupError(where, got=type(source).__name__, expected="text", remedy="download the checkpoint again")
    return {str(name): str(source) for name, source in found.items()}


def main() -> None:
    """Read the templates, then a conversation at a time, and answer each with its prompt or with what is wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the engine's to answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    with contextlib.suppress(MemoryError):
        _serve(iter(sys.stdin.buffer.readline, b""))


def _serve(lines: Iterator[bytes]) -> None:
    import jinja2

    from cpu_engine.template import ChatTemplate, TemplateFailure

    known = next(lines, None)
    if known is None:
        return
    _bound_time()
    try:
        template = ChatTemplate(**json.loads(known))
    except (jinja2.TemplateError, RecursionError) as error:
        _answer({"problem": f"{type(error).__name__} ({error})"})
        return
    _answer({})
    for line in lines:
        _bound_time()
        try:
            _answer({"text": template.render(**json.loads(line))})
        except TemplateFailure as failure:
            _answer({"said": str(failure), "place": failure.place})


def _bound_time() -> None:
    """Have the kernel end this process when it has used its seconds, from now on."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + _SECONDS, hard))


def _answer(value: dict[str, object]) -> None:
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
