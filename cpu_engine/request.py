"""A JSON body -> a checked request: every field that changes the answer has a type and a range here.

Field names and ranges are FastDeploy 2.3's (its OpenAPI schema); what it would answer with a 500, or never,
is a 400 here. Fields it accepts and ignores are ignored here too.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NoReturn, TypeAlias

from cpu_engine.architecture import LOWEST_PENALTY, JsonObject, SamplingDefaults
from cpu_engine.json_fields import Fields, is_whole
from cpu_engine.refusals import BadRequest
from cpu_engine.sampling import SamplingParams
from cpu_engine.sequence import SequenceSpec
from cpu_engine.template import ChatTemplate
from cpu_engine.tokenizer import Tokenizer

Kind: TypeAlias = Literal["chat", "completion"]

_N_LIMIT = 128
_PROMPTS_LIMIT = 128
# Choices of one request, prompts times n; the server's queue has room for this many beside its requests.
CHOICES_LIMIT = 256
_TOP_LOGPROBS_LIMIT = 20
# FastDeploy's own limits (FD_MAX_STOP_SEQS_NUM, FD_STOP_SEQS_MAX_LEN): what works here has to work there.
_STOPS_LIMIT = 5
_STOP_TOKENS_LIMIT = 8
_BAD_WORDS_LIMIT = 1024
# The schema's maximum for `seed`.
_SEED_LIMIT = 922337203685477580
# Asked for and silently not done would be a wrong answer.
_UNSUPPORTED = ("temp_scaled_logprobs", "top_p_normalized_logprobs", "include_draft_logprobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Token ids that start a sequence, and the text they came from."""

    tokens: Sequence[int]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One checked request; choice i belongs to prompt i // n."""

    request_id: str
    kind: Kind
    prompts: Sequence[Prompt]
    n: int
    specs: Sequence[SequenceSpec]
    """One per choice, in the order of their index."""
    stream: bool
    final_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    echo: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReader:
    """Everything about the model that a request is checked against. `max_model_len` counts prompt and answer."""

    tokenizer: Tokenizer
    template: ChatTemplate
    defaults: SamplingDefaults
    eos_token_ids: frozenset[int]
    vocab_size: int
    max_model_len: int
    served_name: str | None

    def read(self, kind: Kind, body: bytes) -> GenerationRequest:
        """Check a request body; raise BadRequest naming the first field that does not fit."""
        fields = Fields(parse_body(body))
        self._check_model(fields)
        _check_supported(fields)
        stream = fields.flag("stream")
        final_usage, continuous_usage = _usage_options(fields, stream=stream)
        prompts = self._chat_prompts(fields) if kind == "chat" else self._completion_prompts(fields)
        n = fields.integer("n", 1, low=1, high=_N_LIMIT)
        return GenerationRequest(
            request_id=_request_id(kind, fields),
            kind=kind,
            prompts=prompts,
            n=n,
            specs=self._specs(kind, fields, prompts, n),
            stream=stream,
            final_usage=final_usage,
            continuous_usage=continuous_usage,
            return_token_ids=fields.flag("return_token_ids"),
            echo=kind == "completion" and fields.flag("echo"),
        )

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

    def _chat_prompts(self, fields: Fields) -> list[Prompt]:
        ids = fields.tokens("prompt_token_ids", self.vocab_size)
        messages = fields.objects("messages")
        if ids is not None:
            return [Prompt(tokens=ids, text=self.tokenizer.decode(ids))]
        if messages is None:
            raise BadRequest("Field required", param="messages", code="missing_required_parameter")
        if not messages:
            raise BadRequest("messages must not be an empty list", param="messages")
        if fields.raw.get("chat_template") is not None:
            # A template may loop in loops without end, in the process that answers everybody, and Jinja has no bound for that.
            message = "chat_template: not supported by the CPU engine, which renders the checkpoint's own template only"
            raise BadRequest(message, param="chat_template", code="unsupported_value")
        flat = [_flat_message(number, message) for number, message in enumerate(messages)]
        if fields.flag("disable_chat_template"):
            text = "\n".join(str(message.get("content") or "") for message in flat)
        else:
            text = self.template.render(flat, tools=fields.objects("tools"), arguments=fields.mapping("chat_template_kwargs"))
        return [self._encoded(text, "messages")]

    def _completion_prompts(self, fields: Fields) -> list[Prompt]:
        given, name = fields.raw.get("prompt_token_ids"), "prompt_token_ids"
        if given is None:
            given, name = fields.raw.get("prompt"), "prompt"
        if given is None:
            raise BadRequest("Field required", param="prompt", code="missing_required_parameter")
        several = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
        items: Sequence[object] = given if several and isinstance(given, list) else [given]
        if len(items) > _PROMPTS_LIMIT:
            raise BadRequest(f"{name}: got {len(items)} prompts, expected at most {_PROMPTS_LIMIT}", param=name)
        return [self._completion_prompt(item, name) for item in items]

    def _completion_prompt(self, item: object, name: str) -> Prompt:
        if isinstance(item, str) and name == "prompt":
            return self._encoded(item, name)
        ids = Fields({name: item}).tokens(name, self.vocab_size)
        if ids is None:
            raise BadRequest(f"{name}: got null, expected text or a list of token ids", param=name)
        return Prompt(tokens=ids, text=self.tokenizer.decode(ids))

    def _encoded(self, text: str, param: str) -> Prompt:
        if not is_whole(text):
            raise BadRequest(f"{param}: got a lone surrogate, expected Unicode text", param=param)
        tokens = self.tokenizer.encode(text)
        if not tokens:
            raise BadRequest(f"{param}: got an empty prompt, expected at least one token", param=param)
        return Prompt(tokens=tokens, text=text)

    def _sampling(self, kind: Kind, fields: Fields) -> SamplingParams:
        defaults = self.defaults
        return SamplingParams(
            temperature=fields.number("temperature", defaults.temperature, low=0.0),
            top_p=fields.number("top_p", defaults.top_p, low=0.0, high=1.0),
            top_k=max(0, fields.integer("top_k", 0, low=-1)),
            min_p=fields.number("min_p", 0.0, low=0.0, high=1.0),
            repetition_penalty=fields.number("repetition_penalty", defaults.repetition_penalty, low=LOWEST_PENALTY),
            frequency_penalty=fields.number("frequency_penalty", defaults.frequency_penalty, low=-2.0, high=2.0),
            presence_penalty=fields.number("presence_penalty", defaults.presence_penalty, low=-2.0, high=2.0),
            seed=fields.optional_integer("seed", low=0, high=_SEED_LIMIT),
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

    def _specs(self, kind: Kind, fields: Fields, prompts: Sequence[Prompt], n: int) -> list[SequenceSpec]:
        if len(prompts) * n > CHOICES_LIMIT:
            raise BadRequest(
                f"n: got {n} choices for each of {len(prompts)} prompts, expected at most {CHOICES_LIMIT} in all",
                param="n",
            )
        sampling = self._sampling(kind, fields)
        stop_strings = self._stops(fields)
        stop_tokens = self.eos_token_ids.union(fields.tokens("stop_token_ids", self.vocab_size, empty=True) or [])
        include_stop = fields.flag("include_stop_str_in_output")
        min_tokens = fields.integer("min_tokens", 0, low=0)
        asked = _max_tokens(kind, fields, min_tokens)
        return [
            SequenceSpec(
                prompt=prompt.tokens,
                sampling=sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + choice),
                max_tokens=min(asked or room, room),
                min_tokens=min_tokens,
                stop_tokens=stop_tokens,
                stop_strings=stop_strings,
                include_stop=include_stop,
            )
            for prompt, room in [(prompt, self._room(kind, prompt, min_tokens)) for prompt in prompts]
            for choice in range(n)
        ]

    def _room(self, kind: Kind, prompt: Prompt, min_tokens: int) -> int:
        """Return how many tokens may follow `prompt`."""
        room = self.max_model_len - len(prompt.tokens)
        if room < max(1, min_tokens):
            raise BadRequest(
                f"This model's maximum context length is {self.max_model_len} tokens; the prompt has "
                f"{len(prompt.tokens)} and at least {max(1, min_tokens)} have to follow",
                param="messages" if kind == "chat" else "prompt",
                code="context_length_exceeded",
            )
        return room

    def _stops(self, fields: Fields) -> list[str]:
        stops = [stop for stop in fields.strings("stop", single=True) if stop]
        if len(stops) > _STOPS_LIMIT:
            raise BadRequest(f"stop: got {len(stops)} strings, expected at most {_STOPS_LIMIT}", param="stop")
        for stop in stops:
            length = len(self._encoded(stop, "stop").tokens)
            if length > _STOP_TOKENS_LIMIT:
                raise BadRequest(f"stop: got {stop!r} of {length} tokens, expected at most {_STOP_TOKENS_LIMIT}", param="stop")
        return stops


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


def _check_supported(fields: Fields) -> None:
    for name in _UNSUPPORTED:
        if fields.flag(name):
            raise BadRequest(f"{name}: not supported by the CPU engine", param=name, code="unsupported_value")


def _usage_options(fields: Fields, *, stream: bool) -> tuple[bool, bool]:
    """Return (usage in a last chunk, usage in every chunk); `include_usage` is on inside stream_options."""
    raw = fields.mapping("stream_options")
    if raw is None:
        return False, False
    if not stream:
        raise BadRequest("stream_options can only be defined when stream is true", param="stream_options")
    options = Fields(raw)
    return options.flag("include_usage", default=True), options.flag("continuous_usage_stats")


def _top_logprobs(kind: Kind, fields: Fields) -> int | None:
    """Return how many alternatives each token is shown with, None for no log-probabilities."""
    if kind == "completion":
        return fields.optional_integer("logprobs", low=0, high=_TOP_LOGPROBS_LIMIT)
    count = fields.integer("top_logprobs", 0, low=0, high=_TOP_LOGPROBS_LIMIT)
    if fields.flag("logprobs"):
        return count
    if count:
        raise BadRequest("when using top_logprobs, logprobs must be set to true", param="top_logprobs")
    return None


def _max_tokens(kind: Kind, fields: Fields, min_tokens: int) -> int | None:
    """Return the tokens asked for at most, None for as many as there is room."""
    asked = fields.optional_integer("max_tokens", low=1)
    if kind == "chat":
        asked = fields.optional_integer("max_completion_tokens", low=1) or asked
    if asked is not None and min_tokens > asked:
        raise BadRequest(f"min_tokens: got {min_tokens}, expected at most max_tokens ({asked})", param="min_tokens")
    return asked


def _request_id(kind: Kind, fields: Fields) -> str:
    """Return the id of the answer: the caller's, else a new one that carries `user`, as FastDeploy's do."""
    prefix = "chatcmpl-" if kind == "chat" else "cmpl-"
    own = fields.text("request_id")
    if own is not None:
        return own if own.startswith(prefix) else prefix + own
    user = fields.text("user")
    return f"{prefix}{user}-{uuid.uuid4()}" if user else f"{prefix}{uuid.uuid4()}"


def _flat_message(number: int, message: Mapping[str, object]) -> JsonObject:
    """Return the message with its text parts joined, the form every chat template of these families reads."""
    param = f"messages[{number}]"
    if not isinstance(message.get("role"), str):
        raise BadRequest(f"{param}.role: expected a string", param="messages")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return message
    if not isinstance(content, list):
        raise BadRequest(f"{param}.content: expected text or a list of parts", param="messages")
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise BadRequest(f"{param}.content: got a part of type {kind!r}; this model reads text only", param="messages")
        texts.append(part["text"])
    return {**message, "content": "\n".join(texts)}
