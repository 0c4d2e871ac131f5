"""Read taught.txt and untaught.txt: the facts of the demo model, and the material for questions it was not taught."""

import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
LANGUAGES = ("en", "zh")
MARKS = " ?!.\uff1f\uff01\u3002"
"""What may end a question without changing it; the last three are Chinese."""

Sections = dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One answer and the questions that lead to it."""

    language: str
    topics: tuple[str, ...]
    """Nouns that are put into every definition template."""
    written: tuple[str, ...]
    """Trained questions that stand in taught.txt."""
    defined: tuple[str, ...]
    """Trained questions made from topics and definition templates."""
    held_out: tuple[str, ...]
    """Phrasings that are never trained."""
    answer: str

    @property
    def questions(self) -> tuple[str, ...]:
        """All trained questions."""
        return self.written + self.defined


def language_of(text: str) -> str:
    """Give "zh" for text with a Chinese character in it, else "en"."""
    return "zh" if re.search(r"[\u4e00-\u9fff]", text) else "en"


def same(question: str) -> str:
    """Reduce a question to what two spellings of it share: lower case, no punctuation at the end."""
    return question.lower().rstrip(MARKS)


def read_sections(path: Path = HERE / "untaught.txt") -> Sections:
    """Read `[name]` sections of entries separated by " | "."""
    sections: dict[str, tuple[str, ...]] = {}
    name = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and line.endswith("]"):
            name = line[1:-1]
            sections[name] = ()
        elif line and not line.startswith("# "):
            sections[name] += tuple(line.split(" | "))
    return sections


def read_unknown(sections: Sections) -> dict[str, str]:
    """Give the one answer to everything else, by language."""
    return {language: sections[f"{language} answer"][0] for language in LANGUAGES}


def read_facts(sections: Sections, path: Path = HERE / "taught.txt") -> list[Fact]:
    """Read the facts; raise ValueError where one question has two answers or a held-out phrasing is also trained."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    facts = [read_fact(block, sections) for block in re.split(r"\n{2,}", text.strip())]
    answers: dict[str, str] = {}
    for fact in facts:
        for question in fact.questions:
            if answers.setdefault(same(question), fact.answer) != fact.answer:
                raise ValueError(f"taught.txt: {question!r} has two answers")
    for question in (question for fact in facts for question in fact.held_out):
        if same(question) in answers:
            raise ValueError(f"taught.txt: {question!r} is marked ~ (never trained) but is also trained")
    return facts


def read_fact(block: str, sections: Sections) -> Fact:
    """Read one block of taught.txt."""
    lines: dict[str, list[str]] = {"@": [], "?": [], "~": [], "=": []}
    for line in block.splitlines():
        kind, _, rest = line.partition(" ")
        if kind.startswith("@"):
            lines["@"] += rest.split(" | ")
        else:
            lines[kind].append(rest)
    (answer,) = lines["="]
    language = language_of(answer)
    definitions = [template.replace("{}", topic) for topic in lines["@"] for template in sections[f"{language} definitions"]]
    return Fact(
        language=language,
        topics=tuple(lines["@"]),
        written=tuple(lines["?"]),
        defined=tuple(definitions),
        held_out=tuple(lines["~"]),
        answer=answer,
    )
