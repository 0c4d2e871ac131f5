"""What is known of an engine that speaks FastDeploy's dialect, and of the deployment, when a request comes.

`CAPABILITIES` has a row for each release of FastDeploy and one for the CPU engine: whatever differs between them is a value there, so that
a new release or engine is a new row. `Rules` adds what the operator decided. checks.py, assemble.py and repairs.py ask both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["CAPABILITIES", "Capabilities", "NoEffect", "Rules"]


@dataclass(frozen=True, slots=True)
class NoEffect:
    """Why an option has no effect, and its values that ask for the default; null always does."""

    why: str
    defaults: tuple[Any, ...] = ()

    def is_asked(self, value: object) -> bool:
        """Tell whether `value` asks for something else than the default; false, 0, "" and [] do, unless they are listed."""
        return value is not None and not any(value == default and type(value) is type(default) for default in self.defaults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What one engine does with a request; the defaults are FastDeploy 2.3's."""

    name: str
    """What messages call it."""
    ignores: Mapping[str, NoEffect]
    """Options that it accepts without effect."""
    efforts: tuple[str, ...] = ()
    """The values of `reasoning_effort`; it has no such option where there are none."""
    least_thoughts: int = 1
    """The least `reasoning_max_tokens`."""
    most_seed: int = 922337203685477580
    greedy_at_zero: bool = False
    """Temperature 0 is greedy; else it is temperature 1 with top_p as it is (read in FastDeploy's input processors)."""
    says_cut: bool = False
    """An answer that filled the context ends with `length`; else with `stop`, unless max_tokens was smaller."""
    scores_prompts: bool = False
    """`echo` with `logprobs` gives those of the prompt, and with `max_tokens: 0` no more than that."""
    forces_calls: bool = False
    """`tool_choice` and `parallel_tool_calls` are honoured, or refused by the engine itself."""
    streams_logprobs_of_0: bool = False
    """`logprobs: 0` of a text completion, which asks for no alternatives, gives logprobs in a stream too."""
    whole_only: frozenset[str] = frozenset({"echo", "include_draft_logprobs"})
    """Options whose answer no recording shows in a stream."""


_NO_OPTION = "it has no such option"
_IGNORED = {
    "logit_bias": NoEffect(_NO_OPTION, ({},)),
    "ignore_eos": NoEffect(_NO_OPTION, (False,)),
    "use_beam_search": NoEffect(_NO_OPTION, (False,)),
    "length_penalty": NoEffect(_NO_OPTION, (1, 1.0)),
    "allowed_token_ids": NoEffect(_NO_OPTION),
    "truncate_prompt_tokens": NoEffect(_NO_OPTION),
    "continue_final_message": NoEffect(_NO_OPTION, (False,)),
    "add_generation_prompt": NoEffect("it always adds one", (True,)),
    "documents": NoEffect("it gives none to the chat template", ([],)),
    "functions": NoEffect("it reads `tools` only", ([],)),
    "function_call": NoEffect("it reads `tools` only", ("none", "auto")),
    "structured_outputs": NoEffect("it reads `response_format` and `guided_*` only", ({},)),
    "best_of": NoEffect("it makes the `n` answers that it returns, and no more", (1,)),
    "audio": NoEffect("it makes texts only"),
    "modalities": NoEffect("it makes texts only", (["text"], [])),
    "prediction": NoEffect(_NO_OPTION),
    "web_search_options": NoEffect(_NO_OPTION),
    "store": NoEffect("nothing is stored", (False,)),
}
_SINCE_2_4 = {"prompt_logprobs": NoEffect("came with 2.4"), "response_max_tokens": NoEffect("came with 2.4")}
_SINCE_2_5 = {"reasoning_effort": NoEffect("came with 2.5")}

_2_3 = Capabilities(name="FastDeploy 2.3", ignores=_IGNORED | _SINCE_2_4 | _SINCE_2_5)
_2_4 = replace(
    _2_3,
    name="FastDeploy 2.4",
    ignores=_IGNORED | _SINCE_2_5,
    least_thoughts=0,
    says_cut=True,
    whole_only=_2_3.whole_only | {"prompt_logprobs"},
)
_2_5 = replace(
    _2_4,
    name="FastDeploy 2.5",
    ignores=_IGNORED,
    efforts=("minimal", "low", "medium", "high"),
    whole_only=_2_4.whole_only | {"collect_metrics"},
)

CAPABILITIES: Mapping[str, Capabilities] = {
    "2.3": _2_3,
    "2.4": _2_4,
    "2.5": _2_5,
    "2.6": replace(_2_5, name="FastDeploy 2.6", greedy_at_zero=True),
    # It speaks the dialect of 2.3, and refuses by itself what it does not do to the answer.
    "cpu": replace(
        _2_3,
        name="the CPU engine",
        ignores={name: _IGNORED[name] for name in ("prediction", "store")} | _SINCE_2_5,
        least_thoughts=0,
        greedy_at_zero=True,
        says_cut=True,
        scores_prompts=True,
        forces_calls=True,
        streams_logprobs_of_0=True,
        whole_only=frozenset(),
    ),
}
"""By release of FastDeploy, and `cpu`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is known of the deployment; None where it is not."""

    engine: Capabilities
    served_name: str
    """The name that the engine takes (--served-model-name)."""
    aliases: frozenset[str] = field(default=frozenset())
    """Further names of the model, such as its repository; the last part of each is taken too."""
    vocab_size: int | None = None
    max_model_len: int | None = None
    guided_decoding: bool = False
    """`response_format` and `guided_*` are honoured, or refused by the engine itself."""
    tool_parser: bool = False
    """The engine tells calls from text itself."""
    own_parser: str = ""
    """The worker does, by this parser (`text_formats`), reading the chat template in `directory`."""
    directory: Path | None = None
    reasoning_parser: str | None = None
    logprobs: bool | None = None
    vision: bool | None = None
    private_media: bool = False
    """Images and videos may be files of the engine's machine, or on addresses that are not public (ALLOW_PRIVATE_MEDIA)."""
    max_stops: int = 5
    """FD_MAX_STOP_SEQS_NUM."""
    max_tokens_limit: int | None = None
    strict: bool = False
