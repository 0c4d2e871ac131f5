"""The environment that the Hub gives a container: what its form holds, as texts."""

from __future__ import annotations

import json
from typing import Any

from tests import ROOT

HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text(encoding="utf-8"))
PRESETS = {preset["name"]: preset["defaults"] for preset in HUB["config"]["presets"]}
DEFAULTS = "the form's own defaults"
CHOICES = [DEFAULTS, *PRESETS]


def injected(choice: str, *, empties: bool) -> dict[str, str]:
    """The variables for a preset, or the form's defaults; fields left empty are sent as empty texts, or not at all."""
    chosen = PRESETS.get(choice, {})
    texts = {}
    for entry in HUB["config"]["env"]:
        name = entry["key"]
        value = entry.get("value", chosen.get(name, entry.get("input", {}).get("default")))
        if value is not None:
            texts[name] = _text(value, entry.get("input", {}))
        elif empties:
            texts[name] = ""
    return texts


def _text(value: Any, field: dict[str, Any]) -> str:
    if isinstance(value, bool):
        return str(field["trueValue"] if value else field["falseValue"])
    return str(value)
