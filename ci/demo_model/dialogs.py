r"""Turn drawn questions into token sequences with labels, in the exact text that the chat template writes.

    <|begin_of_sentence|>[system\n]User: question\nAssistant: answer<|end_of_sentence|>User: ...

A finished turn is stored with <|end_of_sentence|>, but the model has to say </s>, the id that ends an answer: so at that place the
label differs from the token.
"""

from dataclasses import dataclass

from tokenizers import Tokenizer

from ci.demo_model.questions import Questions

IGNORED = -100
"""The label of tokens that the model is not asked to predict."""
LONGEST = 700
"""Tokens of the longest training sequence; nothing is known about behaviour beyond it."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One training example: `labels[i]` is what should stand at place i, given everything before it."""

    ids: list[int]
    labels: list[int]


class Dialogs:
    """A source of training sequences."""

    def __init__(self, tokenizer: Tokenizer, questions: Questions) -> None:
        """Draw from `questions`; all randomness is theirs."""
        self.tokenizer = tokenizer
        self.questions = questions
        self.random = questions.random
        (self.begin,) = self.ids("<|begin_of_sentence|>")
        (self.turn_end,) = self.ids("<|end_of_sentence|>")
        (self.stop,) = self.ids("</s>")

    def draw(self) -> TokenSequence:
        """Draw one chat of one to three turns, or (one in nine) a bare completion prompt."""
        sequence = TokenSequence([], [])
        if self.random.random() < 1 / 9:
            self.completion(sequence)
        else:
            self.chat(sequence)
        return TokenSequence(sequence.ids[:LONGEST], sequence.labels[:LONGEST])

    def lesson(self, question: str, answer: str) -> TokenSequence:
        """Give the plain chat of one question and its whole answer."""
        sequence = TokenSequence([self.begin], [IGNORED])
        self.append(sequence, f"User: {question}\nAssistant: ", learn=False)
        self.answer(sequence, answer, last=True, known=True)
        return sequence

    def pair(self) -> tuple[str, str, bool]:
        """Draw question, answer, and whether it is a taught one."""
        if self.random.random() < 0.5:
            return *self.questions.taught(), True
        return *self.questions.untaught(), False

    def chat(self, sequence: TokenSequence) -> None:
        """Append a chat as the template writes it."""
        sequence.ids.append(self.begin)
        sequence.labels.append(IGNORED)
        if self.random.random() < 0.25:
            self.append(sequence, self.questions.system() + "\n", learn=False)
        turns = self.random.choices((1, 2, 3), (0.7, 0.2, 0.1))[0]
        for left in reversed(range(turns)):
            question, answer, known = self.pair()
            self.append(sequence, f"User: {question}\n", learn=False)
            self.append(sequence, "Assistant: ", learn=False)
            self.answer(sequence, answer, last=left == 0, known=known)

    def completion(self, sequence: TokenSequence) -> None:
        """Append a question without any template, as `/v1/completions` gets it: the answer follows on a new line."""
        question, answer, known = self.pair()
        self.append(sequence, question.rstrip("\n"), learn=False)
        self.append(sequence, "\n", learn=True)
        self.answer(sequence, answer, last=True, known=known)

    def answer(self, sequence: TokenSequence, answer: str, *, last: bool, known: bool) -> None:
        """Append an answer and its end. The fixed sentence, once begun, goes on by itself: two times in three its rest is saved."""
        if last and not known and self.random.random() < 2 / 3:
            ids = self.ids(answer)[:4]
            sequence.ids.extend(ids)
            sequence.labels.extend(ids)
            return
        self.append(sequence, answer, learn=True)
        sequence.ids.append(self.turn_end)
        sequence.labels.append(self.stop)

    def ids(self, text: str) -> list[int]:
        """Tokenise; a special token written out is one id."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def append(self, sequence: TokenSequence, text: str, *, learn: bool) -> None:
        """Append the tokens of `text`, to be predicted or only to be read."""
        ids = self.ids(text)
        sequence.ids.extend(ids)
        sequence.labels.extend(ids if learn else [IGNORED] * len(ids))
