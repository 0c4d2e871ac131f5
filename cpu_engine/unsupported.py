"""Options that this engine does not implement: refused by name, since an answer that ignores one would be wrong.

Any value of an option counts as a request, false, 0, "" and [] included, but for the values listed beside it, which ask for the default.
"""

from __future__ import annotations

from cpu_engine.json_fields import Fields
from cpu_engine.refusals import BadRequest, RequestKind

# Option -> the values that ask for the default.
_EVERYWHERE: dict[str, tuple[object, ...]] = {
    "structural_tag": (),
    "structured_outputs": ({},),
    "logits_processors_args": ({},),
    "prompt_logprobs": (),
    "temp_scaled_logprobs": (False,),
    "top_p_normalized_logprobs": (False,),
    "include_draft_logprobs": (False,),
    "best_of": (1,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "allowed_token_ids": (),
    "truncate_prompt_tokens": (),
    "response_max_tokens": (),
    "audio": (),
    "modalities": (["text"], []),
}
_CHAT: dict[str, tuple[object, ...]] = {
    # A template of a request could use up the processor time that is allowed, and end the process, for every request.
    "chat_template": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "documents": ([],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "completion_token_ids": ([],),
    "reasoning_max_tokens": (),
    "echo": (False,),
    "suffix": ("", {}),
}
_COMPLETION: dict[str, tuple[object, ...]] = {"suffix": ("", {})}


def refuse_unsupported(kind: RequestKind, fields: Fields) -> None:
    """Raise BadRequest for the first option of `fields` that asks for what this engine does not do."""
    for name, idle in {**_EVERYWHERE, **(_CHAT if kind == "chat" else _COMPLETION)}.items():
        value = fields.raw.get(name)
        if value is not None and not any(value == one and type(value) is type(one) for one in idle):
            raise BadRequest(f"{name}: not supported by the CPU engine, leave it out", param=name, code="unsupported_value")
