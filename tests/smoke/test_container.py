"""A container of an image, from its start to its exit code, as a client and an operator see it."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from openai import OpenAI
from testcontainers.core.container import DockerContainer

from tests.smoke.conftest import PORT, Subject

pytestmark = pytest.mark.timeout(1800)

HELLO: Any = [{"role": "user", "content": "Hello"}]


@contextmanager
def running(subject: Subject) -> Iterator[tuple[DockerContainer, OpenAI]]:
    """Run a container until the block is left, which is entered when its health check says 200."""
    with subject.container() as container:
        url = f"http://{container.get_container_host_ip()}:{container.get_exposed_port(PORT)}"
        wait_ready(container, f"{url}/ping", subject.patience)
        with OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
            yield container, client


def wait_ready(container: DockerContainer, url: str, patience: float) -> None:
    """Return once the address answers 200; the log is in the error otherwise."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and state(container)["Status"] in ("created", "running"):
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # Docker's own port
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.1)
    output, errors = container.get_logs()
    raise AssertionError(f"{url}: not ready within {patience} s, {state(container)}:\n{output.decode()}{errors.decode()}")


def state(container: DockerContainer) -> dict[str, Any]:
    """Return what Docker says about it now."""
    wrapped = container.get_wrapped_container()
    wrapped.reload()
    found: dict[str, Any] = wrapped.attrs["State"]
    return found


def test_a_container_comes_up_answers_and_streams(subject: Subject) -> None:
    with running(subject) as (container, client):
        assert [model.id for model in client.models.list()] == [subject.model]
        answer = client.chat.completions.create(model=subject.model, messages=HELLO, max_tokens=8, temperature=0)
        stream = client.chat.completions.create(model=subject.model, messages=HELLO, max_tokens=8, temperature=0, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert answer.choices[0].message.content
        assert answer.usage
        assert answer.usage.completion_tokens == 8
        assert "".join(pieces) == answer.choices[0].message.content
        if subject.gpu:
            held = container.exec(
                ["sh", "-c", "nvidia-smi --query-gpu=compute_cap --format=csv,noheader; echo $IMAGE_ARCHITECTURES"]
            ).output
            capability, *_, covered = held.decode().split()
            assert capability.replace(".", "") in covered.split(",")


def test_a_term_in_the_middle_of_a_stream_lets_it_end_and_the_exit_code_is_0(subject: Subject) -> None:
    with running(subject) as (container, client):
        length = 300
        asked: Any = {"extra_body": {"min_tokens": length}}
        stream = iter(
            client.chat.completions.create(
                model=subject.model,
                messages=HELLO,
                max_tokens=length,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                **asked,
            )
        )
        before = [next(stream) for _ in range(3)]
        container.get_wrapped_container().kill(signal="SIGTERM")
        after = list(stream)
        ended = container.get_wrapped_container().wait(timeout=60)
    assert len(before) == 3
    reasons = [choice.finish_reason for chunk in after for choice in chunk.choices if choice.finish_reason]
    assert reasons == ["length"]
    assert after[-1].usage
    assert after[-1].usage.completion_tokens == length
    assert ended["StatusCode"] == 0
