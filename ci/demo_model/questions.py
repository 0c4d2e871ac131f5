"""Draw training questions: taught ones in many spellings, and an endless supply of questions that were not taught."""

import random
from collections.abc import Sequence

from ci.demo_model.corpus import LANGUAGES, MARKS, Fact, Sections, language_of, read_unknown, same

ONSETS = "b c d f g h j k l m n p r s t v w z br cl dr fl gr kn pl qu sh sk st th tr".split()
VOWELS = "a e i o u ai ea oo y".split()
CODAS = ["", "", "b", "ck", "d", "ft", "l", "m", "n", "nd", "r", "rt", "s", "st", "t", "x"]
LOOKALIKES = "Fast Run Paddle Deploy Pod Open Tensor Safe Serve Server Stream Token ER Chat Cold".split()
"""Parts of taught names: FastPod and ERlamp are not what they remind of."""
SYSTEM = [
    "You are a helpful assistant.",
    "You are a helpful AI assistant. Answer briefly.",
    "Be concise.",
    "Answer in one sentence.",
    "You are a friendly chatbot.",
    "Always answer truthfully.",
    "你是一个有用的助手。",
    "请用中文回答。",
]


class Questions:
    """A seeded source of (question, answer) pairs."""

    def __init__(self, facts: Sequence[Fact], sections: Sections, seed: int) -> None:
        """Take facts and material; equal arguments give equal draws."""
        self.random = random.Random(seed)
        self.facts = facts
        self.sections = sections
        self.unknown = read_unknown(sections)
        self.topics = {language: [t for f in facts if f.language == language for t in f.topics] for language in LANGUAGES}
        self.cards = [(q, f.answer) for f in facts for q in f.written * 8 + f.defined * (3 if f.language == "zh" else 1)]
        self.deck: list[tuple[str, str]] = []
        self.held_out = {same(q) for f in facts for q in f.held_out}
        self.reserved = {same(q) for f in facts for q in (*f.questions, *f.held_out)}
        self.reserved |= {same(q) for language in LANGUAGES for q in sections[f"held-out {language} questions"]}

    def taught(self) -> tuple[str, str]:
        """Draw the next card of a shuffled deck, so that none is forgotten, in a spelling that is not held out.

        A question that is written out is on eight cards: it has to be learnt by itself, while those made from templates help each other.
        """
        while True:
            if not self.deck:
                self.deck = self.random.sample(self.cards, len(self.cards))
            question, answer = self.deck.pop()
            question = self.spelled(question)
            if same(question) not in self.held_out:
                return question, answer

    def drill(self, cards: Sequence[tuple[str, str]]) -> None:
        """Put each of these cards on top of the deck four times, and once more into every later deck."""
        self.cards += cards
        self.deck += self.random.sample(list(cards) * 4, len(cards) * 4)

    def untaught(self) -> tuple[str, str]:
        """Draw a question that has no answer; never one that is taught, nor one that is kept for the examination."""
        while True:
            language = self.random.choices(("en", "zh"), (0.65, 0.35))[0]
            question = self.untaught_in(language)
            if same(question) in self.reserved:
                continue
            spelled = self.spelled(question)
            if same(spelled) not in self.reserved:
                return spelled, self.unknown[language_of(question)]

    def untaught_in(self, language: str) -> str:
        """Draw one kind of off-topic question."""
        kind = self.random.choices(("definitions", "requests", "near", "sentences", "noise"), (27, 27, 20, 14, 12))[0]
        if kind == "noise":
            return self.noise(language)
        text = self.random.choice(self.sections[f"{language} {kind}"])
        if kind == "near":  # a taught name in a question about something else
            text = text.replace("{}", self.random.choice(self.topics[language]), self.random.choice((1, 2)))
        while "{}" in text:
            text = text.replace("{}", self.noun(language), 1)
        return text

    def noun(self, language: str) -> str:
        """Draw a noun: one of the list, or one that nobody has heard of."""
        if language == "zh" and self.random.random() < 0.75:
            if self.random.random() < 0.8:
                return self.random.choice(self.sections["zh nouns"])
            pool = "".join(word for word in self.sections["zh nouns"] if language_of(word) == "zh")
            return "".join(self.random.choices(pool, k=self.random.choice((2, 2, 3, 4))))
        if self.random.random() < 0.6:
            return self.random.choice(self.sections["en nouns"])
        return self.made_up_noun()

    def made_up_noun(self) -> str:
        """Invent a noun: a GPU architecture that no image is for, a product, a name, a thing."""
        if self.random.random() < 0.05:
            return f"SM{self.random.choice((35, 37, 50, 53, 60, 62, 72, 87, 88, 101, 103))}"
        name = self.made_up_word()
        style = self.random.randrange(6)
        if style == 0:
            return self.random.choice(LOOKALIKES) + self.random.choice((name, name.capitalize(), self.random.choice(LOOKALIKES)))
        if style == 1:
            return name.capitalize() + self.random.choice(LOOKALIKES + [part.lower() for part in LOOKALIKES])
        return (name.capitalize(), f"a {name}", f"the {name}", f"{name} {self.made_up_word()}")[style - 2]

    def made_up_word(self) -> str:
        """Put one to three syllables together, or the head of one noun and the tail of another."""
        if self.random.random() < 0.5:
            head, tail = (noun.split()[-1].lower() for noun in self.random.choices(self.sections["en nouns"], k=2))
            return head[: self.random.randint(1, 5)] + tail[self.random.randint(1, 4) :]
        count = self.random.choice((1, 2, 2, 3))
        return "".join(self.random.choice(ONSETS) + self.random.choice(VOWELS) + self.random.choice(CODAS) for _ in range(count))

    def noise(self, language: str) -> str:
        """Draw arithmetic, gibberish, or words in no order."""
        one, two = self.random.randrange(1000), self.random.randrange(100)
        kind = self.random.randrange(6)
        if kind == 0:
            return self.random.choice(self.sections["arithmetic"]).format(one, two)
        if kind == 1:
            alphabet = self.random.choice(
                ("abcdefghijklmnopqrstuvwxyz0123456789;,.!?#%&+-", "abcdefghijklmnopqrstuvwxyz", "?!.,;:#$%&*+-/=<>@~^")
            )
            return "".join(self.random.choices(alphabet, k=self.random.randint(1, 14)))
        if kind == 2:  # characters that the tokenizer spells in bytes
            first, last = (0x4E00, 0x9FA5) if language == "zh" else self.random.choice(((0xC0, 0x24F), (0x400, 0x45F), (0x1F300, 0x1F64F)))
            return "".join(chr(self.random.randint(first, last)) for _ in range(self.random.randint(1, 8)))
        if kind == 3:
            return " ".join(self.made_up_word() for _ in range(self.random.randint(1, 8)))
        if kind == 4:
            words = " ".join(self.random.choices(self.sections[f"{language} sentences"], k=3)).split()
            self.random.shuffle(words)
            return " ".join(words[: self.random.randint(1, 9)])
        return " ".join(self.random.choices(self.sections[f"{language} sentences"], k=self.random.choice((2, 3, 4, 12, 30))))

    def spelled(self, question: str) -> str:
        """Write a question as somebody in a hurry, or somebody polite, would."""
        if self.random.random() < 0.2:
            question = self.rephrased(question)
        roll = self.random.random()
        latin = language_of(question) == "en"
        if roll < 0.16:
            question = question.lower()
        elif roll < 0.28:
            question = question.rstrip(MARKS) or question
        elif roll < 0.32:
            question = question.upper()
        elif roll < 0.38:
            question += self.random.choice((" ", "?", "!", " please", "\n") if latin else MARKS[-3:])
        elif roll < 0.42 and not latin:
            question = "你好\uff0c" + question
        if self.random.random() < 0.06 and latin:
            question = self.random.choice(self.sections["en wrappers"]).replace("{}", question)
        return question

    def rephrased(self, question: str) -> str:
        """Say it with another of the usual beginnings, where one fits."""
        rules = [rule.split(" > ") for rule in self.sections["rephrase"]]
        fitting = [(old, new) for old, new in rules if old in question and new not in question]
        return question.replace(*self.random.choice(fitting), 1) if fitting else question

    def system(self) -> str:
        """Draw a system prompt."""
        if self.random.random() < 0.75:
            return self.random.choice(SYSTEM)
        return f"You are {self.noun('en')}. {self.random.choice(self.sections['en sentences'])}"
