"""The tables on pages: docs/configuration.md as a whole, and those parts of READMEs that stand between marks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from handler.fastdeploy.flags import EXTRA_ARGS, ONLY_EXTRA, OWN
from handler.fastdeploy.table import RELEASES, Flag, every_flag, flag_table
from handler.fastdeploy.values import INTEGER_VARIABLES, NUMBER_VARIABLES
from handler.settings import TABLE, Variable
from tools.generate.flag_help import GROUPS
from tools.generate.form_fields import HEADINGS
from tools.generate.hub_listing import image, pools
from tools.generate.presets import PRESETS

__all__ = ["between_marks", "configuration", "listing", "variables"]

_INTRODUCTION = """# Configuration

Made by `ci/just generate` from the tables that the worker reads; what is written here by hand is lost.

Variables come from the environment. An image with a baked model holds `/local_model_args.json`, a JSON object with the same names, which
wins over the environment. An empty value means not set. A wrong value, a name that looks like a misspelt one, or two names of one variable
that hold different values stop the start with a message that names all of them. A variable of another worker that has no effect here is
named in a warning with what to set instead; one that asks for LoRA adapters stops the start.

"""

_ENGINE = """## FastDeploy's flags

Every flag of FastDeploy's server is a variable too, by its upper-case name, read exactly as the parser of the installed release reads it.
Switches take `true`, `false`, `1` or `0`; JSON is an object; lists are separated by commas. A flag that the installed release does not have
is refused by name. Where no default stands, the engine decides.

`{extra}` takes flags as words on a command line (`--seed 7 --enable-logprob`) and wins over the variables.

"""

_SWITCHES = """## FastDeploy's own variables

Variables that begin with `FD_` reach the engine as they are, but for `FD_API_KEY`. FastDeploy reads these as whole numbers, its switches
among them as `1` and `0`; any other text is refused, since it would end the engine in a traceback.

{whole}

These are numbers: {parts}
"""


def configuration() -> str:
    """Return docs/configuration.md."""
    parts = [_INTRODUCTION, "## The worker's own variables\n\n"]
    for group, heading in HEADINGS.items():
        rows = [variable for variable in TABLE if variable.group == group]
        parts += [f"### {heading}\n\n", _own_table(rows), "\n"]
    parts.append(_ENGINE.format(extra=EXTRA_ARGS))
    for heading, meanings in GROUPS.items():
        cells = [_flag_row(dest, meaning) for dest, meaning in meanings.items()]
        parts += [f"### {heading}\n\n", _table(("variable", "values", "default", "releases", "meaning"), cells), "\n"]
    parts += [_reserved(), _switches()]
    return "".join(parts)


def variables() -> str:
    """Return the README's table: what most deployments set."""
    table = _own_table(variable for variable in TABLE if variable.form == "shown")
    return f"{table}\n[docs/configuration.md](docs/configuration.md) lists every variable, FastDeploy's flags among them.\n"


def listing() -> str:
    """Return the table of the Hub's README: the models it offers, and where they run."""
    rows = [(preset.name, f"`{preset.defaults['MODEL']}`", _settings(preset.defaults)) for preset in PRESETS]
    target = image()
    named = ", ".join(f"`{pool}`" for pool in pools(target.covers))
    return (
        _table(("preset", "model", "set beside it"), rows)
        + f"\nFastDeploy {target.release}, CUDA {target.cuda} or newer on the host, GPUs of the pools {named}.\n"
    )


def between_marks(page: str, name: str, new: str) -> str:
    """Return a page with `new` between its marks <!-- generated: name --> and <!-- end -->.

    Raises:
        ValueError: when the page has no such marks.
    """
    mark, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
    before, found, rest = page.partition(mark)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"expected {mark.strip()} and, below it, {end}")
    return f"{before}{mark}\n{new}\n{end}{after}"


def _own_table(rows: Iterable[Variable]) -> str:
    cells = [(f"`{row.name}`", _default(row.default), _meaning(row)) for row in rows]
    return _table(("variable", "default", "meaning"), cells)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head)]
    lines += [["---"] * len(lines[0]), *(list(row) for row in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _default(value: Any) -> str:
    if value in ("", None):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _meaning(variable: Variable) -> str:
    choices = f" One of {_listed(variable.choices)}." if variable.choices else ""
    bounds = "" if variable.minimum is None or variable.choices else f" From {variable.minimum:,.12g} to {variable.maximum:,.12g}."
    aliases = f" Also: {_listed(variable.aliases)}." if variable.aliases else ""
    return variable.help + choices + bounds + aliases


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _flag_row(dest: str, meaning: str) -> tuple[str, ...]:
    flag, having = every_flag()[dest]
    defaults: dict[str, list[str]] = {}
    for release in having:
        defaults.setdefault(_flag_default(flag_table(release)[dest]), []).append(release)
    if len(defaults) == 1:
        default = next(iter(defaults))
    else:
        default = "; ".join(f"{text or 'none'} ({_span(releases)})" for text, releases in defaults.items())
    return f"`{dest.upper()}`", _values(flag), default, _span(having), _sentence(meaning)


def _sentence(meaning: str) -> str:
    """Return a meaning without the word for its kind, which a column of its own tells."""
    text = meaning.removeprefix("JSON: ")
    return text[0].upper() + text[1:]


def _flag_default(flag: Flag) -> str:
    return _default(bool(flag.default)) if flag.action == "true" else _default(flag.default)


def _values(flag: Flag) -> str:
    if not flag.takes_value or flag.dest == "guided_decoding_disable_any_whitespace":
        return "switch"
    if flag.choices:
        return _listed(flag.choices)
    kinds = {"int": "whole number", "float": "number", "json": "JSON", "list": "list"}
    return kinds.get(flag.type, "text")


def _span(releases: Iterable[str]) -> str:
    """Return releases as a reader scans them: 2.3-2.6, or one by one where there are gaps."""
    names = list(releases)
    first = RELEASES.index(names[0])
    if len(names) > 1 and tuple(names) == RELEASES[first : first + len(names)]:
        return f"{names[0]} to {names[-1]}"
    return ", ".join(names)


def _reserved() -> str:
    own = [(f"`--{dest.replace('_', '-')}`", reason) for dest, reason in OWN.items()]
    extra = [(f"`--{dest.replace('_', '-')}`", reason) for dest, reason in ONLY_EXTRA.items()]
    return (
        "### The worker's own\n\nThese are set by the worker, whoever asks.\n\n"
        + _table(("flag", "why"), own)
        + f"\nThese can be set through `{EXTRA_ARGS}` only.\n\n"
        + _table(("flag", "why"), extra)
        + "\n"
    )


def _switches() -> str:
    whole, parts = (" ".join(f"`{name}`" for name in sorted(names)) for names in (INTEGER_VARIABLES, NUMBER_VARIABLES))
    return _SWITCHES.format(whole=whole, parts=parts)


def _settings(defaults: Any) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in defaults.items() if name != "MODEL")
