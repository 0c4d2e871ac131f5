"""The tokens that the form of an answer allows at each step: a grammar compiled by llguidance, which only this file knows.

Compiling is bounded by the size of text and grammar, a step by llguidance's own limits. Measured on two cores: a schema of 1,000
properties in one object compiles in 0.5 s and costs up to 40 ms a token, and larger ones are refused; sixty tools of ten arguments each
take 0.2 s and 0.1 ms.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cpu_engine.answer_form import AnswerForm
from cpu_engine.refusals import BadRequest
from cpu_engine.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

_TEXT_LIMIT = 128 << 10
_GRAMMAR_LIMIT = 10_000
# Of 1 to 2 kB each.
_STATES_LIMIT = 25_000
_PLACE = re.compile(r"^at \d+\(\d+\): ")


class ConstraintError(Exception):
    """A step went beyond what a grammar may cost; the text says which limit."""


class ConstraintCompiler:
    """Compiles the forms of answers for one vocabulary. Safe for concurrent use."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()

    def compile(self, form: AnswerForm) -> Constraint:
        """Return the initial state of an answer of this form; raise BadRequest for a form that is malformed, too large or empty."""
        import llguidance

        if len(form.grammar) > _TEXT_LIMIT:
            message = f"{form.field}: got {len(form.grammar)} characters, expected at most {_TEXT_LIMIT}"
            raise BadRequest(message, param=form.field)
        try:
            grammar = llguidance.grammar_from("grammar", form.grammar) if form.field == "guided_grammar" else form.grammar
        except (ValueError, RecursionError) as error:
            raise _refusal(form, str(error)) from error
        limits = llguidance.LLParserLimits(max_grammar_size=_GRAMMAR_LIMIT, max_lexer_states=_STATES_LIMIT, verbose_errors=False)
        constraint = Constraint(llguidance.LLMatcher(self._all_tokens(), grammar, log_level=0, limits=limits), self._vocab_size)
        try:
            constraint.allowed()
        except ConstraintError as error:
            raise _refusal(form, str(error)) from error
        return constraint

    def _all_tokens(self) -> llguidance.LLTokenizer:
        """Return the vocabulary as llguidance reads it; the first request that needs it makes it."""
        import llguidance

        with self._lock:
            if self._vocabulary is None:
                wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, self._eos_token_ids))
                self._vocabulary = llguidance.LLTokenizer(wrapper, n_vocab=self._vocab_size, eos_token=self._eos_token_ids or None)
            return self._vocabulary


class Constraint:
    """The state of one answer in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def copy(self) -> Constraint:
        """Return a copy of the state, for another answer."""
        return Constraint(self._matcher.deep_copy(), self._vocab_size)

    @property
    def finished(self) -> bool:
        """Say whether the answer is whole and nothing may follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return for each token [vocab] whether it may be next; raise ConstraintError when none may, or the step is too costly."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(np.bool_)
        if self._matcher.is_error() or not allowed.any():
            raise ConstraintError(self._matcher.get_error() or "no text is of this form")
        return allowed

    def take(self, token: int) -> None:
        """Advance by a token; raise ConstraintError for one that was not allowed."""
        if not self._matcher.consume_token(token):
            raise ConstraintError(self._matcher.get_error())


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Collection[int]) -> None:
        self.bos_token_id = None
        self.eos_token_id = next(iter(eos_token_ids), 0)
        self.tokens = [tokenizer.bytes_of(token) for token in range(tokenizer.size)]
        self.special_token_ids = sorted(tokenizer.special_ids)
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def _refusal(form: AnswerForm, said: str) -> BadRequest:
    """Return the error for a form that does not compile. Its first line is kept; the others quote the grammar made here."""
    first = _PLACE.sub("", said.strip().split("\n", 1)[0])
    return BadRequest(f"{form.field}: {first}", param=form.field, code="unsupported_value")
