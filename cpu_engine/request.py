"""A JSON body -> a checked request: every field that changes the answer has a type and a range here, or is refused.

Field names and ranges are FastDeploy 2.3's (its OpenAPI schema); what FastDeploy answers with a 500, or never, is a 400 here. An option
that FastDeploy ignores and this engine does not implement is a 400 too (unsupported.py).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from cpu_engine.answer_form import AnswerForm, read_form
from cpu_engine.architecture import LOWEST_PENALTY, JsonObject, SamplingDefaults
from cpu_engine.constraint import ConstraintCompiler
from cpu_engine.json_fields import Fields
from cpu_engine.prompts import Prompt, PromptReader
from cpu_engine.refusals import BadRequest, RequestKind
from cpu_engine.sampling import SamplingParams
from cpu_engine.sequence import SequenceSpec
from cpu_engine.tokenizer import Tokenizer
from cpu_engine.unsupported import refuse_unsupported

_N_LIMIT = 128
# Choices of one request, prompts times n; the server's queue has room for this many beside its requests.
CHOICES_LIMIT = 256
_TOP_LOGPROBS_LIMIT = 20
# FastDeploy's own limit (FD_MAX_STOP_SEQS_NUM): what works here has to work there. Its other limit, of 8 tokens a stop, is left out: it is
# meant for a vocabulary of 100,000, and says nothing of a small one.
_STOPS_LIMIT = 5
# Each token is compared with the start of each stop.
_STOP_LENGTH_LIMIT = 4096
_BAD_WORDS_LIMIT = 1024
# The schema's maximum for `seed`.
_SEED_LIMIT = 922337203685477580
# OpenAI's bounds.
_TEMPERATURE_LIMIT = 2.0
_BIAS_LIMIT = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One checked request; choice i belongs to prompt i // n."""

    request_id: str
    kind: RequestKind
    prompts: Sequence[Prompt]
    n: int
    specs: Sequence[SequenceSpec]
    """One per choice, in the order of their index."""
    stream: bool
    final_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    echo: bool
    calls: Mapping[str, str]
    """Where each answer is a call: how its text begins -> the name of the tool (see AnswerForm)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReader:
    """Everything about the model that a request is checked against. `max_model_len` counts prompt and answer."""

    tokenizer: Tokenizer
    prompts: PromptReader
    constraints: ConstraintCompiler
    defaults: SamplingDefaults
    eos_token_ids: frozenset[int]
    vocab_size: int
    max_model_len: int
    served_name: str | None

    def read(self, kind: RequestKind, body: bytes) -> GenerationRequest:
        """Check a request body; raise BadRequest naming the first field that does not fit."""
        fields = Fields(parse_body(body))
        self._check_model(fields)
        refuse_unsupported(kind, fields)
        stream = fields.flag("stream")
        final_usage, continuous_usage = _usage_options(fields, stream=stream)
        form = read_form(kind, fields)
        prompts = self.prompts.chat(fields) if kind == "chat" else self.prompts.completion(fields)
        n = fields.integer("n", 1, low=1, high=_N_LIMIT)
        echo = kind == "completion" and fields.flag("echo")
        return GenerationRequest(
            request_id=_request_id(kind, fields),
            kind=kind,
            prompts=prompts,
            n=n,
            specs=self._specs(kind, fields, prompts, n, form),
            stream=stream,
            final_usage=final_usage,
            continuous_usage=continuous_usage,
            return_token_ids=fields.flag("return_token_ids"),
            echo=echo,
            calls=form.calls if form else {},
        )

    def close(self) -> None:
        """End what renders chat templates."""
        self.prompts.template.close()

    def _check_model(self, fields: Fields) -> None:
        name = fields.raw.get("model", "default")
        if self.served_name is not None and name not in (self.served_name, "default"):
            raise BadRequest(
                f"The model {name!r} does not exist: this server has {self.served_name!r}",
                param="model",
                code="model_not_found",
                status=404,
            )
        if name is not None and not isinstance(name, str):
            raise fields.wrong("model", "a string")

    def _sampling(self, kind: RequestKind, fields: Fields) -> SamplingParams:
        defaults = self.defaults
        return SamplingParams(
            temperature=fields.number("temperature", defaults.temperature, low=0.0, high=_TEMPERATURE_LIMIT),
            top_p=fields.number("top_p", defaults.top_p, low=0.0, high=1.0),
            top_k=max(0, fields.integer("top_k", 0, low=-1)),
            min_p=fields.number("min_p", 0.0, low=0.0, high=1.0),
            repetition_penalty=fields.number("repetition_penalty", defaults.repetition_penalty, low=LOWEST_PENALTY),
            frequency_penalty=fields.number("frequency_penalty", defaults.frequency_penalty, low=-2.0, high=2.0),
            presence_penalty=fields.number("presence_penalty", defaults.presence_penalty, low=-2.0, high=2.0),
            seed=_seed(fields),
            logit_bias=self._logit_bias(fields),
            banned=self._banned(fields),
            top_logprobs=_top_logprobs(kind, fields),
        )

    def _banned(self, fields: Fields) -> list[Sequence[int]]:
        """Return the token sequences of bad_words, each with and without a space before it."""
        words = fields.strings("bad_words")
        ids = fields.tokens("bad_words_token_ids", self.vocab_size, empty=True) or []
        if len(words) + len(ids) > _BAD_WORDS_LIMIT:
            raise BadRequest(f"bad_words: expected at most {_BAD_WORDS_LIMIT}", param="bad_words")
        spellings = [self.tokenizer.encode(text) for word in words if word for text in (word, " " + word)]
        return [*(spelling for spelling in spellings if spelling), *([token] for token in ids)]

    def _logit_bias(self, fields: Fields) -> dict[int, float]:
        """Return what is added to the logits of tokens, by id."""
        given = fields.mapping("logit_bias") or {}
        bias = Fields(given)
        for name in given:
            if not (name.isascii() and name.isdecimal() and int(name) < self.vocab_size):
                message = f"logit_bias: got the token id {json.dumps(name)}, expected token ids from 0 to {self.vocab_size - 1}"
                raise BadRequest(message, param="logit_bias")
        try:
            return {int(name): bias.number(name, 0.0, low=-_BIAS_LIMIT, high=_BIAS_LIMIT) for name in given}
        except BadRequest as error:
            raise BadRequest(f"logit_bias: token {error.message}", param="logit_bias") from error

    def _specs(self, kind: RequestKind, fields: Fields, prompts: Sequence[Prompt], n: int, form: AnswerForm | None) -> list[SequenceSpec]:
        if len(prompts) * n > CHOICES_LIMIT:
            raise BadRequest(
                f"n: got {n} choices for each of {len(prompts)} prompts, expected at most {CHOICES_LIMIT} in all",
                param="n",
            )
        sampling = self._sampling(kind, fields)
        # In a call that is demanded a stop would leave half of its arguments.
        stop_strings = [] if form and form.calls else _stops(fields)
        stop_tokens = self.eos_token_ids.union(fields.tokens("stop_token_ids", self.vocab_size, empty=True) or [])
        include_stop = fields.flag("include_stop_str_in_output")
        min_tokens = fields.integer("min_tokens", 0, low=0)
        asked = _max_tokens(kind, fields, min_tokens)
        least = 0 if asked == 0 else max(1, min_tokens)
        scores_prompt = kind == "completion" and fields.flag("echo") and sampling.top_logprobs is not None
        rooms = [self._room(kind, prompt, least) for prompt in prompts]
        constraint = self.constraints.compile(form) if form else None
        return [
            SequenceSpec(
                prompt=prompt.tokens,
                sampling=sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + choice),
                max_tokens=room if asked is None else min(asked, room),
                min_tokens=min_tokens,
                stop_tokens=stop_tokens,
                stop_strings=stop_strings,
                include_stop=include_stop,
                scores_prompt=scores_prompt,
                constraint=constraint,
            )
            for prompt, room in zip(prompts, rooms, strict=True)
            for choice in range(n)
        ]

    def _room(self, kind: RequestKind, prompt: Prompt, least: int) -> int:
        """Return how many tokens may follow `prompt`, at least `least`."""
        room = self.max_model_len - len(prompt.tokens)
        if room < least:
            raise BadRequest(
                f"This model's maximum context length is {self.max_model_len} tokens; the prompt has "
                f"{len(prompt.tokens)} and at least {least} have to follow",
                param="messages" if kind == "chat" else "prompt",
                code="context_length_exceeded",
            )
        return room


def parse_body(body: bytes) -> JsonObject:
    """Return the JSON object of a request body; raise BadRequest for anything else."""
    if not body.strip():
        raise BadRequest("Field required", param="body", code="missing_required_parameter")
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is no valid JSON: {error}", param="body", code="invalid_json") from error
    if not isinstance(value, dict):
        raise BadRequest(f"The body is a JSON {type(value).__name__}, expected an object", param="body")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _usage_options(fields: Fields, *, stream: bool) -> tuple[bool, bool]:
    """Return (usage in a last chunk, usage in every chunk); `include_usage` is on inside stream_options."""
    raw = fields.mapping("stream_options")
    if raw is None:
        return False, False
    if not stream:
        raise BadRequest("stream_options can only be defined when stream is true", param="stream_options")
    options = Fields(raw)
    return options.flag("include_usage", default=True), options.flag("continuous_usage_stats")


def _seed(fields: Fields) -> int | None:
    """Return the seed: -1 is none, as on other servers, and others are folded into FastDeploy's range."""
    seed = fields.optional_integer("seed")
    return None if seed in (None, -1) else seed % (_SEED_LIMIT + 1)


def _stops(fields: Fields) -> list[str]:
    stops = [stop for stop in fields.strings("stop", single=True) if stop]
    if len(stops) > _STOPS_LIMIT:
        raise BadRequest(f"stop: got {len(stops)} strings, expected at most {_STOPS_LIMIT}", param="stop")
    for stop in stops:
        if len(stop) > _STOP_LENGTH_LIMIT:
            raise BadRequest(f"stop: got a string of {len(stop)} characters, expected at most {_STOP_LENGTH_LIMIT}", param="stop")
    return stops


def _top_logprobs(kind: RequestKind, fields: Fields) -> int | None:
    """Return how many alternatives each token is shown with, None for no log-probabilities."""
    if kind == "completion":
        # A switch is read as a number, as pydantic reads it for FastDeploy.
        if isinstance(fields.raw.get("logprobs"), bool):
            return 1 if fields.raw["logprobs"] else None
        return fields.optional_integer("logprobs", low=0, high=_TOP_LOGPROBS_LIMIT)
    count = fields.integer("top_logprobs", 0, low=0, high=_TOP_LOGPROBS_LIMIT)
    if fields.flag("logprobs"):
        return count
    if count:
        raise BadRequest("when using top_logprobs, logprobs must be set to true", param="top_logprobs")
    return None


def _max_tokens(kind: RequestKind, fields: Fields, min_tokens: int) -> int | None:
    """Return the tokens asked for at most, None for as many as there is room; 0 only where the prompt itself is the answer."""
    low = 0 if kind == "completion" and fields.flag("echo") else 1
    asked = fields.optional_integer("max_tokens", low=low)
    if kind == "chat":
        asked = fields.optional_integer("max_completion_tokens", low=1) or asked
    if asked is not None and min_tokens > asked:
        raise BadRequest(f"min_tokens: got {min_tokens}, expected at most max_tokens ({asked})", param="min_tokens")
    return asked


def _request_id(kind: RequestKind, fields: Fields) -> str:
    """Return the id of the answer: the caller's, else a new one that carries `user`, as FastDeploy's do."""
    prefix = "chatcmpl-" if kind == "chat" else "cmpl-"
    own = fields.text("request_id")
    if own is not None:
        return own if own.startswith(prefix) else prefix + own
    user = fields.text("user")
    return f"{prefix}{user}-{uuid.uuid4()}" if user else f"{prefix}{uuid.uuid4()}"
