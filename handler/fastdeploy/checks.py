"""Decide whether FastDeploy can serve a request: the body to send, or a 400 that names field and range.

Refused is what FastDeploy never answers (its own check fails after the request was queued: no answer, and a slot is lost for good), what
makes it read beyond its tables (ids outside of the vocabulary), what it answers with nothing (`n` below 1), and what it answers with a
500 and a traceback. Options that it drops in silence are refused with STRICT_REQUESTS and reported as warnings without.

FastDeploy merges `metadata` (of a chat), `suffix` (of a text completion) and `chat_template_kwargs` into its own request, where any field
of the engine can be set. So: in the first two, sampling parameters are checked like those beside them, the engine's other fields are
refused, and the rest, which is the caller's own notes, stays here; in the third, whatever is a field of the engine is refused and the
rest belongs to the template. `request_id` never passes: two requests of one id break each other.

Everything else passes as it came, known or not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from handler.errors import InvalidJob
from handler.fastdeploy.rules import Rules
from handler.job import CHAT, COMPLETIONS

__all__ = ["Checked", "Range", "check"]

Body = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A request that may be sent, and what of it will have no effect."""

    body: Body
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both within, without `low` itself if `above`."""

    low: float
    high: float | None = None
    whole: bool = True
    above: bool = False

    def __str__(self) -> str:
        """Name it to a person."""
        number = "a whole number" if self.whole else "a number"
        if self.above:
            return f"{number} above {self.low:g}"
        high = int(self.high) if self.whole and self.high is not None else self.high
        return f"{number} of at least {self.low:g}" if high is None else f"{number} from {self.low:g} to {high}"

    def __contains__(self, value: object) -> bool:
        """Tell whether it is a number, and within."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (self.whole and value != value // 1):
            return False
        return self.low <= value and (self.high is None or value <= self.high) and not (self.above and value == self.low)


SAMPLING = {
    "min_tokens": Range(0),
    "max_tokens": Range(1),
    "max_completion_tokens": Range(1),
    "reasoning_max_tokens": Range(0),
    "response_max_tokens": Range(1),
    "max_streaming_response_tokens": Range(1),
    "top_k": Range(-1),
    "top_p": Range(0, 1, whole=False),
    "min_p": Range(0, 1, whole=False),
    "temperature": Range(0, whole=False),
    "repetition_penalty": Range(0, whole=False, above=True),
    "frequency_penalty": Range(-2, 2, whole=False),
    "presence_penalty": Range(-2, 2, whole=False),
    "seed": Range(0, 922337203685477580),
}
"""What FastDeploy's SamplingParams accepts; `metadata` may hold these."""

_BESIDE = {"n": Range(1, 128), "best_of": Range(1, 128), "top_logprobs": Range(0, 20)}
_NOTES = frozenset((*SAMPLING, *"bad_words bad_words_token_ids enable_thinking include_stop_str_in_output".split()))
_ENGINE = frozenset(
    """arrival_time attention_mask_offset bad_words bad_words_token_ids block_tables chat_template chat_template_kwargs
    completion_token_ids disable_chat_template disaggregate_info disaggregation dp_rank draft_token_ids echo eos_token_ids
    error_code error_message extend_block_tables guided_choice guided_grammar guided_json guided_regex history idx
    include_draft_logprobs include_logprobs_decode_token include_stop_str_in_output logits_processors_args logprobs messages
    metadata metrics mm_hashes model multimodal_data multimodal_img_boundaries multimodal_inputs n need_prefill_tokens
    num_computed_tokens output_token_ids pooling_params position_ids preprocess_end_time preprocess_start_time prompt
    prompt_logprobs prompt_token_ids prompt_token_ids_len prompt_tokens raw_request request_id response_format return_token_ids
    sampling_params status stop stop_seqs_len stop_token_ids stream stream_options structural_tag suffix system task_type
    temp_scaled_logprobs text_after_process tool_call tools top_logprobs top_p_normalized_logprobs trace_carrier trace_context
    user""".split()
)
"""Fields that the engine reads from its request besides the sampling parameters."""

_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structural_tag")
_IDS = ("prompt_token_ids", "completion_token_ids", "bad_words_token_ids", "stop_token_ids")
_DEAF = {
    "logit_bias": "it has no such option",
    "ignore_eos": "it has no such option",
    "functions": "it reads `tools` only",
    "function_call": "it reads `tools` only",
    "audio": "it makes texts only",
    "prediction": "it has no such option",
    "enable_thinking": "it reads chat_template_kwargs.enable_thinking only",
}
_EFFORTS = ("minimal", "low", "medium", "high")


def check(body: Mapping[str, Any], path: str, rules: Rules) -> Checked:
    """Return the body to send for a request to `path`, leaving `body` as it is; what was sent once passes again unchanged.

    Raises:
        InvalidJob: the first thing that is wrong, with `param`; status 404 where it is the name of the model.
    """
    sent = dict(body)
    if path not in {CHAT, COMPLETIONS, "/v1/embeddings", "/v1/reward"}:
        return Checked(body=sent)
    sent.pop("request_id", None)
    _name_model(sent, rules)
    if sent.get("disaggregate_info") is not None:
        _refuse("disaggregate_info", "is a field of the engine's own, which no request may set")
    if path not in {CHAT, COMPLETIONS}:
        _check_ids(sent, "", ("input",), rules)
        return Checked(body=sent)

    notes = "metadata" if path == CHAT else "suffix"
    _take_notes(sent, notes)
    _check_template_kwargs(sent)
    for place, prefix in ((sent, ""), (sent.get(notes) or {}, f"{notes}.")):
        _check_numbers(place, prefix, SAMPLING | ({"reasoning_max_tokens": Range(1)} if rules.release == "2.3" else {}))
        _check_ids(place, prefix, _IDS, rules)
        _check_texts(place, prefix, "bad_words")
    _check_numbers(sent, "", _BESIDE if path == CHAT else _BESIDE | {"logprobs": Range(0, 20)})
    (_check_messages if path == CHAT else _check_prompt)(sent, rules)
    _check_stops(sent, rules)
    _check_formats(sent)
    _check_options(sent, path, rules)
    warnings = [*_limit_tokens(sent, sent.get(notes) or {}, path, rules)]
    _make_greedy(sent, notes, rules)
    for field, why in _unheard(sent, path, rules):
        if rules.strict:
            _refuse(
                field,
                f"FastDeploy {rules.release} would ignore it: {why} (STRICT_REQUESTS=false lets it pass)",
                code="unsupported_parameter",
            )
        warnings.append(f"{field} has no effect: {why}")
    return Checked(body=sent, warnings=tuple(warnings))


def _name_model(sent: Body, rules: Rules) -> None:
    """Write the name that the engine takes; null counts as not given."""
    if sent.get("model") is None:
        sent.pop("model", None)
        return
    names = {rules.served_name, *rules.aliases}
    names |= {name.rstrip("/").rsplit("/", 1)[-1] for name in names}
    if sent["model"] not in [*names, "default"]:
        message = f"model: got {_shown(sent['model'])}, this worker serves {rules.served_name}"
        raise InvalidJob(message, param="model", code="model_not_found", status=404)
    sent["model"] = rules.served_name


def _take_notes(sent: Body, notes: str) -> None:
    """Leave in `metadata` or `suffix` only what the engine may read there."""
    given = sent.get(notes)
    if given is None:
        return
    if not isinstance(given, dict):
        _refuse(notes, f"got {_shown(given)}, expected an object" + ("; FastDeploy fills nothing in" if notes == "suffix" else ""))
    for name in given:
        if name in _ENGINE and name not in _NOTES:
            _refuse(f"{notes}.{name}", "is a field of the engine's own, which no request may set there")
        if name in _NOTES and sent.get(name) is not None:
            _refuse(f"{notes}.{name}", f"{name} is given twice, expected once")
    for name in ("enable_thinking", "include_stop_str_in_output"):
        if given.get(name) is not None and not isinstance(given[name], bool):
            _refuse(f"{notes}.{name}", f"got {_shown(given[name])}, expected true or false")
    sent[notes] = {name: value for name, value in given.items() if name in _NOTES and value is not None}


def _check_template_kwargs(sent: Body) -> None:
    given = sent.get("chat_template_kwargs")
    if given is None:
        return
    if not isinstance(given, dict):
        _refuse("chat_template_kwargs", f"got {_shown(given)}, expected an object")
    for name in given:
        if name in _ENGINE or name in SAMPLING:
            _refuse(f"chat_template_kwargs.{name}", "is a field of the engine and none of a template; give it beside chat_template_kwargs")


def _check_numbers(place: Mapping[str, Any], prefix: str, ranges: Mapping[str, Range]) -> None:
    for name, expected in ranges.items():
        if place.get(name) is not None and place[name] not in expected:
            _refuse(prefix + name, f"got {_shown(place[name])}, expected {expected}")


def _check_ids(place: Mapping[str, Any], prefix: str, names: tuple[str, ...], rules: Rules) -> None:
    expected = Range(0, None if rules.vocab_size is None else rules.vocab_size - 1)
    for name in names:
        value = place.get(name)
        if value is not None and not isinstance(value, list) and name != "input":
            _refuse(prefix + name, f"got {_shown(value)}, expected a list of token ids")
        for item in _flat(value) if name in {"input", "prompt_token_ids"} else value or ():
            # FastDeploy reads a text that spells a number as that number; an input is a text.
            if item not in expected and not (name == "input" and isinstance(item, str)):
                _refuse(prefix + name, f"got the token id {_shown(item)}, expected {expected}")
    args = place.get("logits_processors_args")
    bias = args.get("logit_bias") if isinstance(args, dict) else None
    for key in bias if isinstance(bias, dict) else ():
        if not key.isdecimal() or int(key) not in expected:
            _refuse(f"{prefix}logits_processors_args", f"got the token id {_shown(key)}, expected {expected}")


def _flat(value: object) -> list[object]:
    """Return the items of a list, or of a list of lists."""
    return [item for part in value for item in (part if isinstance(part, list) else [part])] if isinstance(value, list) else []


def _check_texts(place: Mapping[str, Any], prefix: str, name: str) -> None:
    value = place.get(name)
    if value is not None and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
        _refuse(prefix + name, f"got {_shown(value)}, expected a list of texts")


def _check_messages(sent: Body, rules: Rules) -> None:
    messages, ids = sent.get("messages"), sent.get("prompt_token_ids")
    if ids is not None:
        _check_prompt_ids("prompt_token_ids", ids, rules)
    if "messages" not in sent:
        _refuse("messages", "missing, expected a list of messages", code="missing_required_parameter")
    if not isinstance(messages, list) or (not messages and ids is None):
        _refuse("messages", f"got {_shown(messages)}, expected a list of at least one message")
    for position, message in enumerate(messages):
        field = f"messages[{position}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not message["role"]:
            _refuse(field, f"got {_shown(message)}, expected an object with a role and a content")
        _check_content(field, message)


def _check_content(field: str, message: Body) -> None:
    content = message.get("content")
    if content is None and message["role"] in {"system", "developer", "user"}:
        _refuse(f"{field}.content", "missing, expected a text or a list of parts")
    if content is not None and not isinstance(content, (str, list)):
        _refuse(f"{field}.content", f"got {_shown(content)}, expected a text or a list of parts")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or (kind == "text" and not isinstance(part.get("text"), str)):
            _refuse(f"{field}.content[{index}]", f'got {_shown(part)}, expected a part such as {{"type": "text", "text": "..."}}')


def _check_prompt(sent: Body, rules: Rules) -> None:
    if sent.get("prompt") is None:
        _refuse("prompt", "missing, expected a text, a list of texts or token ids", code="missing_required_parameter")
    for name in ("prompt_token_ids", "prompt"):
        value = sent.get(name)
        if value is None:
            continue
        for one in value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]:
            if isinstance(one, list):
                _check_prompt_ids(name, one, rules)
            elif name != "prompt" or not isinstance(one, str) or (not one and sent.get("prompt_token_ids") is None):
                _refuse(name, f"got {_shown(one)}, expected a text or a list of token ids, not empty")


def _check_prompt_ids(name: str, ids: object, rules: Rules) -> None:
    if not isinstance(ids, list) or not ids or any(item not in Range(0, (rules.vocab_size or 2**31) - 1) for item in ids):
        top = "" if rules.vocab_size is None else f" from 0 to {rules.vocab_size - 1}"
        _refuse(name, f"got {_shown(ids)}, expected a list of token ids{top}, at least one")
    if rules.max_model_len is not None and len(ids) >= rules.max_model_len:
        message = f"got {len(ids)} tokens, expected less than {rules.max_model_len}, the context of the model"
        _refuse(name, message, code="context_length_exceeded")


def _check_stops(sent: Body, rules: Rules) -> None:
    stops = sent.get("stop")
    if stops is None or isinstance(stops, str):
        return
    _check_texts(sent, "", "stop")
    if len(stops) > rules.max_stops or "" in stops:
        _refuse("stop", f"got {_shown(stops)}, expected at most {rules.max_stops} texts, none of them empty")


def _check_formats(sent: Body) -> None:
    """Check tools, response_format and the guided_* fields for what FastDeploy answers with a traceback."""
    form = sent.get("response_format")
    if form is not None:
        kinds = ("text", "json_object", "json_schema", "structural_tag")
        if not isinstance(form, dict) or form.get("type") not in kinds:
            _refuse("response_format", f"got {_shown(form)}, expected an object with a type: {', '.join(kinds)}")
        schema = form.get("json_schema")
        if form["type"] == "json_schema" and not (isinstance(schema, dict) and isinstance(schema.get("name"), str)):
            _refuse("response_format.json_schema", f"got {_shown(schema)}, expected an object with a name and a schema")
    guided = [name for name in _GUIDED if sent.get(name) is not None]
    if len(guided) > 1:
        _refuse(guided[1], f"got both {guided[0]} and {guided[1]}, expected one of {', '.join(_GUIDED)}")
    tools = sent.get("tools")
    for tool in tools if isinstance(tools, list) else [] if tools is None else [tools]:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            _refuse("tools", f'got {_shown(tool)}, expected a list of {{"type": "function", "function": {{"name": "..."}}}}')
    if tools is not None and not isinstance(tools, list):
        _refuse("tools", f"got {_shown(tools)}, expected a list")


def _check_options(sent: Body, path: str, rules: Rules) -> None:
    """Check what belongs together."""
    if sent.get("stream_options") is not None and not sent.get("stream"):
        _refuse("stream_options", "expected beside stream: true only")
    wants = bool(sent.get("logprobs")) if path == CHAT else sent.get("logprobs") is not None
    if path == CHAT and sent.get("top_logprobs") and not wants:
        _refuse("top_logprobs", "expected beside logprobs: true only")
    if wants and rules.logprobs is False:
        _refuse("logprobs", "this deployment gives none; its operator can set ENABLE_LOGPROB=true", code="unsupported_parameter")
    effort = sent.get("reasoning_effort")
    if path == CHAT and effort is not None and effort not in _EFFORTS and rules.release not in {"2.3", "2.4"}:
        _refuse("reasoning_effort", f"got {_shown(effort)}, expected one of {', '.join(_EFFORTS)}")


def _limit_tokens(sent: Body, notes: Body, path: str, rules: Rules) -> list[str]:
    """Cut max_tokens to the deployment's limit and see that min_tokens fits under it. A text completion reads max_tokens only."""
    if path == COMPLETIONS and sent.get("max_tokens") is None and sent.get("max_completion_tokens") is not None:
        sent["max_tokens"] = sent.pop("max_completion_tokens")
    warnings, limit = [], rules.max_tokens_limit
    places = [(place, name) for place in (sent, notes) for name in ("max_completion_tokens", "max_tokens") if place.get(name) is not None]
    for place, name in places if limit is not None else ():
        if place[name] > limit:
            warnings.append(f"{name} was cut from {place[name]} to {limit} (MAX_TOKENS_LIMIT)")
            place[name] = limit
    if limit is not None and not places:
        sent["max_tokens"] = limit
        places = [(sent, "max_tokens")]
    least = max(sent.get("min_tokens") or 0, notes.get("min_tokens") or 0)
    most = min((place[name] for place, name in places), default=None)
    if most is not None and least > most:
        _refuse("min_tokens", f"got {least:g}, expected at most max_tokens, which is {most:g}")
    return warnings


def _make_greedy(sent: Body, notes: str, rules: Rules) -> None:
    """Send top_k 1 beside temperature 0, which 2.3 to 2.5 turn into temperature 1 with top_p as it is (read in their input processors)."""
    inner = sent.get(notes) or {}
    temperature = inner.get("temperature", sent.get("temperature"))
    if temperature is None or temperature >= 1e-5 or rules.release not in {"2.3", "2.4", "2.5"}:
        return
    if "top_k" in inner:
        sent[notes] = inner | {"top_k": 1}
    else:
        sent["top_k"] = 1


def _unheard(sent: Body, path: str, rules: Rules) -> list[tuple[str, str]]:
    """Return the fields that FastDeploy would take without a word and without effect, and why."""
    found = [(name, why) for name, why in _DEAF.items() if sent.get(name)]
    form = sent.get("response_format")
    fields = [name for name in _GUIDED if sent.get(name) is not None]
    fields += ["response_format"] if form is not None and form["type"] != "text" else []
    if not rules.guided_decoding:
        found += [(name, "no guided decoding here (GUIDED_DECODING_BACKEND)") for name in fields]
    if path == COMPLETIONS:
        return found + [(name, "a text completion has none") for name in ("best_of", "tools") if (sent.get(name) or 1) != 1]
    choice, tools = sent.get("tool_choice"), sent.get("tools")
    if choice not in (None, "none", "auto") or (choice == "none" and tools and rules.tool_parser):
        found.append(("tool_choice", "FastDeploy leaves the choice to the model"))
    elif choice == "auto" and tools and not rules.tool_parser:
        found.append(("tool_choice", "no tool parser here (TOOL_CALL_PARSER); calls come as plain text"))
    if sent.get("parallel_tool_calls") is False and tools:
        found.append(("parallel_tool_calls", "FastDeploy leaves the number of calls to the model"))
    if rules.vision is False and _has_media(sent["messages"]):
        found.append(("messages", "the model reads no images or videos"))
    found += [(name, "came with 2.4") for name in ("prompt_logprobs", "response_max_tokens") if rules.release == "2.3" and sent.get(name)]
    if sent.get("reasoning_effort") is not None and rules.release in {"2.3", "2.4"}:
        found.append(("reasoning_effort", "came with 2.5"))
    return found


def _has_media(messages: list[Body]) -> bool:
    contents = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    return any(part["type"] != "text" for content in contents for part in content)


def _refuse(field: str, message: str, *, code: str = "invalid_value") -> NoReturn:
    raise InvalidJob(f"{field}: {message}", param=field, code=code)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
