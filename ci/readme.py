"""Write the README's table of variables from the one in `handler/variables.py`: `python -m ci.readme`."""

from __future__ import annotations

from pathlib import Path

from handler.variables import TABLE, Variable

README = Path(__file__).resolve().parent.parent / "README.md"
HEAD = "| variable | default | meaning |\n| --- | --- | --- |\n"


def table() -> str:
    """Return the table as Markdown."""
    return HEAD + "".join(f"| `{variable.name}` | {_default(variable)} | {_meaning(variable)} |\n" for variable in TABLE)


def written(text: str) -> str:
    """Return the README's text with the table in the place of the old one."""
    before, _, rest = text.partition(HEAD)
    after = rest[rest.index("\n\n") :]
    return before + table().rstrip("\n") + after


def _default(variable: Variable) -> str:
    default = variable.default
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    return str(default) if default != "" else ""


def _meaning(variable: Variable) -> str:
    choices = f" One of {', '.join(variable.choices)}." if variable.choices else ""
    aliases = f" Also: {', '.join(f'`{alias}`' for alias in variable.aliases)}." if variable.aliases else ""
    return variable.help + choices + aliases


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
