"""Decide whether an engine of FastDeploy's dialect can serve a request: the body to send, or a 400 that names field and range.

Refused is what FastDeploy never answers (its own check fails after the request was queued: no answer, and a slot is lost for good), what
makes it read beyond its tables (ids outside of the vocabulary), what it answers with nothing (`n` below 1), and what it answers with a
500 and a traceback. What has no effect is reported (unheard.py), and refused with STRICT_REQUESTS.

FastDeploy merges `metadata` (of a chat), `suffix` (of a text completion) and `chat_template_kwargs` into its own request, where any field
of the engine can be set. So: of the first two, sampling parameters are sent beside the others, the engine's other fields are refused, and
the rest, which is the caller's own notes, stays here; in the third, whatever is a field of the engine is refused and the rest belongs to
the template. `request_id` never passes: two requests of one id break each other.

Everything else passes as it came, known or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from handler.errors import InvalidJob
from handler.fastdeploy.fields import Range, half_character, refuse, shown
from handler.fastdeploy.media import check_media
from handler.fastdeploy.rules import Rules
from handler.fastdeploy.unheard import GUIDED, unheard
from handler.job import CHAT, COMPLETIONS

__all__ = ["SAMPLING", "Checked", "check"]

Body = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A request that may be sent, and what of it will have no effect."""

    body: Body
    warnings: tuple[str, ...] = ()


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
    "seed": Range(0),
}
"""What FastDeploy's SamplingParams accepts; `metadata` may hold these."""

_BESIDE = {"n": Range(1, 128), "best_of": Range(1, 128), "top_logprobs": Range(0, 20)}
_NOTES = frozenset((*SAMPLING, "bad_words", "bad_words_token_ids", "enable_thinking", "include_stop_str_in_output"))
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

_IDS = ("prompt_token_ids", "completion_token_ids", "bad_words_token_ids", "stop_token_ids")


def check(body: Mapping[str, Any], path: str, rules: Rules) -> Checked:
    """Return the body to send for a request to `path`, leaving `body` as it is; what was sent once passes again unchanged.

    Raises:
        InvalidJob: the first thing that is wrong, with `param`; status 404 where it is the name of the model.
    """
    sent = dict(body)
    if path not in {CHAT, COMPLETIONS, "/v1/embeddings", "/v1/reward"}:
        return Checked(body=sent)
    if half := half_character(sent):
        refuse(half, "holds half of a surrogate pair, expected whole characters")
    sent.pop("request_id", None)
    _name_model(sent, rules)
    if sent.get("disaggregate_info") is not None:
        refuse("disaggregate_info", "is a field of the engine's own, which no request may set")
    if path not in {CHAT, COMPLETIONS}:
        _check_ids(sent, ("input",), rules)
        if "messages" in sent:
            sent["messages"] = _check_messages(sent["messages"], rules)
        return Checked(body=sent)

    _take_notes(sent, "metadata" if path == CHAT else "suffix")
    _check_template_kwargs(sent, path)
    _read_seed(sent, rules)
    if path == COMPLETIONS:
        _read_logprobs(sent, rules)
    _check_numbers(sent, _ranges(sent, path, rules))
    _check_ids(sent, _IDS, rules)
    _check_texts(sent, "bad_words")
    (_check_chat if path == CHAT else _check_completion)(sent, rules)
    _check_stops(sent, rules)
    _check_formats(sent)
    if sent.get("tool_choice") == "none":
        sent.pop("tools", None)  # the model cannot call what it does not know of
    _check_options(sent, path, rules)
    warnings = _limit_tokens(sent, path, rules)
    _make_greedy(sent, rules)
    for field, why in unheard(sent, path, rules):
        if rules.strict:
            message = f"{rules.engine.name} would ignore it: {why} (STRICT_REQUESTS=false lets it pass)"
            refuse(field, message, code="unsupported_parameter")
        warnings.append(f"{field} has no effect: {why}")
    return Checked(body=sent, warnings=tuple(warnings))


def _name_model(sent: Body, rules: Rules) -> None:
    """Write the name that the engine takes, also where the request has none: of some routes FastDeploy wants one."""
    names = {rules.served_name, *rules.aliases}
    names |= {name.rstrip("/").rsplit("/", 1)[-1] for name in names}
    if sent.get("model") not in [*names, "default", None]:
        message = f"model: got {shown(sent['model'])}, this worker serves {rules.served_name}"
        raise InvalidJob(message, param="model", code="model_not_found", status=404)
    sent["model"] = rules.served_name


def _take_notes(sent: Body, notes: str) -> None:
    """Put the sampling parameters that `metadata` or `suffix` holds beside the others, and leave the rest of it here."""
    given = sent.pop(notes, None)
    if given is None:
        return
    if not isinstance(given, dict):
        refuse(notes, f"got {shown(given)}, expected an object" + ("; nothing is filled in before a text" if notes == "suffix" else ""))
    for name, value in given.items():
        if name in _ENGINE and name not in _NOTES:
            refuse(f"{notes}.{name}", "is a field of the engine's own, which no request may set there")
        if name not in _NOTES or value is None:
            continue
        if sent.get(name) is not None:
            refuse(f"{notes}.{name}", f"{name} is given twice, expected once")
        sent[name] = value


def _check_template_kwargs(sent: Body, path: str) -> None:
    """Check what the chat template is given, and give it `enable_thinking`, which is read nowhere else."""
    thinks = sent.get("enable_thinking")
    if thinks is not None and not isinstance(thinks, bool):
        refuse("enable_thinking", f"got {shown(thinks)}, expected true or false")
    given = sent.get("chat_template_kwargs")
    if given is not None and not isinstance(given, dict):
        refuse("chat_template_kwargs", f"got {shown(given)}, expected an object")
    for name in given or ():
        if name in _ENGINE or name in SAMPLING:
            refuse(f"chat_template_kwargs.{name}", "is a field of the engine and none of a template; give it beside chat_template_kwargs")
    if path == CHAT and thinks is not None:
        del sent["enable_thinking"]
        if (given or {}).get("enable_thinking", thinks) != thinks:
            refuse("enable_thinking", "is given twice, the second time in chat_template_kwargs, expected once")
        sent["chat_template_kwargs"] = {**(given or {}), "enable_thinking": thinks}


def _read_seed(sent: Body, rules: Rules) -> None:
    """Read -1 as no seed, as other servers do, and fold others into what the engine takes: the same one gives the same answer."""
    seed = sent.get("seed")
    if seed == -1:
        del sent["seed"]
    elif isinstance(seed, (int, float)) and not isinstance(seed, bool) and seed == seed // 1:
        sent["seed"] = int(seed) % (rules.engine.most_seed + 1)


def _read_logprobs(sent: Body, rules: Rules) -> None:
    """Read true as 1 and false as none, as pydantic and FastDeploy do, and 0 as 1 where a stream would leave them out for it."""
    if isinstance(sent.get("logprobs"), bool):
        sent["logprobs"] = 1 if sent["logprobs"] else None
    if sent.get("logprobs") == 0 and sent.get("stream") and not rules.engine.streams_logprobs_of_0 and rules.logprobs is not False:
        sent["logprobs"] = 1


def _ranges(sent: Body, path: str, rules: Rules) -> dict[str, Range]:
    ranges = SAMPLING | _BESIDE | {"reasoning_max_tokens": Range(rules.engine.least_thoughts)}
    if path == CHAT:
        return ranges
    if sent.get("echo") is True and rules.engine.scores_prompts:
        ranges["max_tokens"] = ranges["max_completion_tokens"] = Range(0)
    return ranges | {"logprobs": Range(0, 20)}


def _check_numbers(sent: Body, ranges: Mapping[str, Range]) -> None:
    for name, expected in ranges.items():
        if sent.get(name) is not None and sent[name] not in expected:
            refuse(name, f"got {shown(sent[name])}, expected {expected}")


def _check_ids(sent: Body, names: tuple[str, ...], rules: Rules) -> None:
    expected = Range(0, None if rules.vocab_size is None else rules.vocab_size - 1)
    for name in names:
        value = sent.get(name)
        if value is not None and not isinstance(value, list) and name != "input":
            refuse(name, f"got {shown(value)}, expected a list of token ids")
        for item in _flat(value) if name in {"input", "prompt_token_ids"} else value or ():
            # FastDeploy reads a text that spells a number as that number; an input is a text.
            if item not in expected and not (name == "input" and isinstance(item, str)):
                refuse(name, f"got the token id {shown(item)}, expected {expected}")
    args = sent.get("logits_processors_args")
    bias = args.get("logit_bias") if isinstance(args, dict) else None
    for key in bias if isinstance(bias, dict) else ():
        if not key.isdecimal() or int(key) not in expected:
            refuse("logits_processors_args", f"got the token id {shown(key)}, expected {expected}")


def _flat(value: object) -> list[object]:
    """Return the items of a list, or of a list of lists."""
    return [item for part in value for item in (part if isinstance(part, list) else [part])] if isinstance(value, list) else []


def _check_texts(sent: Body, name: str) -> None:
    value = sent.get(name)
    if value is not None and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
        refuse(name, f"got {shown(value)}, expected a list of texts")


def _check_chat(sent: Body, rules: Rules) -> None:
    messages, ids = sent.get("messages"), sent.get("prompt_token_ids")
    if ids is not None:
        _check_prompt_ids("prompt_token_ids", ids, rules)
    if "messages" not in sent:
        refuse("messages", "missing, expected a list of messages", code="missing_required_parameter")
    if not isinstance(messages, list) or (not messages and ids is None):
        refuse("messages", f"got {shown(messages)}, expected a list of at least one message")
    sent["messages"] = _check_messages(messages, rules)


def _check_messages(messages: object, rules: Rules) -> list[Body]:
    """Return the messages to send: an assistant that only called tools said nothing, and a template adds up texts."""
    checked = []
    for position, message in enumerate(messages if isinstance(messages, list) else ()):
        field = f"messages[{position}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not message["role"]:
            refuse(field, f"got {shown(message)}, expected an object with a role and a content")
        _check_content(field, message, rules)
        checked.append(message if message.get("content") is not None else {**message, "content": ""})
    return checked


def _check_content(field: str, message: Body, rules: Rules) -> None:
    content = message.get("content")
    if content is None and message["role"] in {"system", "developer", "user"}:
        refuse(f"{field}.content", "missing, expected a text or a list of parts")
    if content is not None and not isinstance(content, (str, list)):
        refuse(f"{field}.content", f"got {shown(content)}, expected a text or a list of parts")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or (kind == "text" and not isinstance(part.get("text"), str)):
            refuse(f"{field}.content[{index}]", f'got {shown(part)}, expected a part such as {{"type": "text", "text": "..."}}')
        if kind != "text" and not rules.private_media:
            check_media(f"{field}.content[{index}]", part)


def _check_completion(sent: Body, rules: Rules) -> None:
    if sent.get("prompt") is None:
        refuse("prompt", "missing, expected a text, a list of texts or token ids", code="missing_required_parameter")
    for name in ("prompt_token_ids", "prompt"):
        value = sent.get(name)
        if value is None:
            continue
        several = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
        if any(isinstance(one, str) for one in several) and any(isinstance(one, list) for one in several):
            refuse(name, f"got {shown(value)}, expected a list of texts, or one of lists of token ids")
        for one in several:
            if isinstance(one, list):
                _check_prompt_ids(name, one, rules)
            elif name != "prompt" or not isinstance(one, str) or (not one and sent.get("prompt_token_ids") is None):
                refuse(name, f"got {shown(one)}, expected a text or a list of token ids, not empty")


def _check_prompt_ids(name: str, ids: object, rules: Rules) -> None:
    if not isinstance(ids, list) or not ids or any(item not in Range(0, (rules.vocab_size or 2**31) - 1) for item in ids):
        top = "" if rules.vocab_size is None else f" from 0 to {rules.vocab_size - 1}"
        refuse(name, f"got {shown(ids)}, expected a list of token ids{top}, at least one")
    if rules.max_model_len is not None and len(ids) >= rules.max_model_len:
        message = f"got {len(ids)} tokens, expected less than {rules.max_model_len}, the context of the model"
        refuse(name, message, code="context_length_exceeded")


def _check_stops(sent: Body, rules: Rules) -> None:
    stops = sent.get("stop")
    if stops is None or isinstance(stops, str):
        return
    _check_texts(sent, "stop")
    if len(stops) > rules.max_stops or "" in stops:
        refuse("stop", f"got {shown(stops)}, expected at most {rules.max_stops} texts, none of them empty")


def _check_formats(sent: Body) -> None:
    """Check tools, response_format and the guided_* fields for what FastDeploy answers with a traceback."""
    form = sent.get("response_format")
    if form is not None:
        kinds = ("text", "json_object", "json_schema", "structural_tag")
        if not isinstance(form, dict) or form.get("type") not in kinds:
            refuse("response_format", f"got {shown(form)}, expected an object with a type: {', '.join(kinds)}")
        schema = form.get("json_schema")
        if form["type"] == "json_schema" and not (isinstance(schema, dict) and isinstance(schema.get("name"), str)):
            refuse("response_format.json_schema", f"got {shown(schema)}, expected an object with a name and a schema")
    guided = [name for name in GUIDED if sent.get(name) is not None]
    if len(guided) > 1:
        refuse(guided[1], f"got both {guided[0]} and {guided[1]}, expected one of {', '.join(GUIDED)}")
    tools = sent.get("tools")
    for tool in tools if isinstance(tools, list) else [] if tools is None else [tools]:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            refuse("tools", f'got {shown(tool)}, expected a list of {{"type": "function", "function": {{"name": "..."}}}}')
    if tools is not None and not isinstance(tools, list):
        refuse("tools", f"got {shown(tools)}, expected a list")


def _check_options(sent: Body, path: str, rules: Rules) -> None:
    """Check what belongs together."""
    if sent.get("stream_options") is not None and not sent.get("stream"):
        refuse("stream_options", "expected beside stream: true only")
    wants = bool(sent.get("logprobs"))
    if path == CHAT and sent.get("top_logprobs") and not wants:
        refuse("top_logprobs", "expected beside logprobs: true only")
    if wants and rules.logprobs is False:
        refuse("logprobs", "this deployment gives none; its operator can set ENABLE_LOGPROB=true", code="unsupported_parameter")
    if path == COMPLETIONS and sent.get("logprobs") is not None and sent.get("echo") and not rules.engine.scores_prompts:
        message = f"{rules.engine.name} gives none of a prompt, expected without echo: a score made of the rest would mean nothing"
        refuse("logprobs", message, code="unsupported_value")
    effort = sent.get("reasoning_effort")
    if path == CHAT and effort is not None and rules.engine.efforts and effort not in rules.engine.efforts:
        refuse("reasoning_effort", f"got {shown(effort)}, expected one of {', '.join(rules.engine.efforts)}")


def _limit_tokens(sent: Body, path: str, rules: Rules) -> list[str]:
    """Cut max_tokens to the deployment's limit and see that min_tokens fits under it. A text completion reads max_tokens only."""
    if path == COMPLETIONS and sent.get("max_tokens") is None and sent.get("max_completion_tokens") is not None:
        sent["max_tokens"] = sent.pop("max_completion_tokens")
    warnings, limit = [], rules.max_tokens_limit
    names = [name for name in ("max_completion_tokens", "max_tokens") if sent.get(name) is not None]
    for name in names if limit is not None else ():
        if sent[name] > limit:
            warnings.append(f"{name} was cut from {sent[name]} to {limit} (MAX_TOKENS_LIMIT)")
            sent[name] = limit
    if limit is not None and not names:
        sent["max_tokens"] = limit
        names = ["max_tokens"]
    least, most = sent.get("min_tokens") or 0, min((sent[name] for name in names), default=None)
    if most is not None and least > most:
        refuse("min_tokens", f"got {least:g}, expected at most max_tokens, which is {most:g}")
    return warnings


def _make_greedy(sent: Body, rules: Rules) -> None:
    """Send top_k 1 beside temperature 0, where that alone is not greedy."""
    temperature = sent.get("temperature")
    if temperature is not None and temperature < 1e-5 and not rules.engine.greedy_at_zero:
        sent["top_k"] = 1
