"""Run Nix on this tree with the host's own tools in the place of nixpkgs: `python -m ci.nix.offline build .#image-cpu`.

The flake is the committed one, and its lock still names the real nixpkgs: only that input is replaced, by `ci/nix/host`. Builds are in the
sandbox, without the network, except for those whose result is pinned. Store, logs and caches are all in one folder (dist/nix), so nothing
is left elsewhere, and a machine's own Nix is not touched.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Nix", "NixFailed"]

_ROOT = Path(__file__).resolve().parents[2]
_TOOLS = ("/usr", "/bin", "/lib", "/lib64")
_PATIENCE = 600
"""Seconds that one command may take."""


class NixFailed(Exception):
    """Nix is missing, or failed; the text ends with the end of its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nix:
    """Nix on one tree, with all that it writes in one folder, which need not exist."""

    folder: Path
    tree: Path = _ROOT

    def __call__(self, *words: str, **variables: str) -> str:
        """Run one command, such as build or flake check, in the tree, and return what it printed.

        Raises:
            NixFailed: with its output.
        """
        return self._run(self.command(*words), variables)

    def command(self, *words: str) -> list[str]:
        """Return the command line."""
        end = words.index("--") if "--" in words else len(words)
        replaced = ("--override-input", "nixpkgs", f"path:{self.tree}/ci/nix/host", "--no-write-lock-file")
        features = ("--extra-experimental-features", "nix-command flakes")
        sandbox = ("--option", "sandbox", "true", "--option", "extra-sandbox-paths", " ".join(_shown()))
        return ["nix", *features, *sandbox, *_SINGLE_USER, *words[:end], *replaced, *words[end:]]

    def add(self, files: Iterable[Path]) -> None:
        """Put files into the store under their own names, as if they had been fetched by their SHA-256."""
        command = ["nix-store", *_SINGLE_USER, "--add-fixed", "sha256", *map(str, files)]
        self._run(command, {})

    def environment(self) -> dict[str, str]:
        """Return the environment that keeps it in its folder."""
        places = {"STORE": "store", "STATE": "state", "LOG": "log", "CONF": "conf"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NIX_") or name == "NIX_SSL_CERT_FILE"}
        return {
            **inherited,
            **{f"NIX_{name}_DIR": str(self.folder / place) for name, place in places.items()},
            "PATH": f"{sys.prefix}/bin:{inherited.get('PATH', '')}",  # programs of the flake run with this Python
            "NIX_USER_CONF_FILES": "",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }

    def _run(self, command: list[str], variables: dict[str, str]) -> str:
        try:
            done = subprocess.run(
                command,
                cwd=self.tree,
                env=self.environment() | variables,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_PATIENCE,
                check=False,
            )
        except FileNotFoundError:
            raise NixFailed(f"{command[0]}: not found on this machine; install it (Debian: apt-get install nix-bin)") from None
        if done.returncode:
            raise NixFailed(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-6000:]}")
        return done.stdout


_SINGLE_USER = ("--option", "build-users-group", "", "--option", "substituters", "", "--option", "max-jobs", "auto")
"""Neither a daemon's users nor a server with what others have built; a job for each core."""


def _shown() -> list[str]:
    """Return what the sandbox shows of the host: its tools, and the Python that this is, as /host."""
    base = Path(sys.base_prefix).resolve()
    apart = [] if any(base.is_relative_to(tools) for tools in _TOOLS) else [str(base)]
    return [*(tools for tools in _TOOLS if Path(tools).exists()), f"/host={sys.prefix}", *apart]


def main(words: list[str]) -> None:
    """Become nix."""
    if not words or words[0].startswith("-"):
        sys.exit("usage: python -m ci.nix.offline VERB [WORD ...]\n\nVERB is one of nix, such as build, eval or run.")
    nix = Nix(folder=_ROOT / "dist" / "nix")
    try:
        os.execvpe("nix", nix.command(*words), nix.environment())  # noqa: S606  # no shell wanted
    except FileNotFoundError:
        sys.exit("nix: not found on this machine; install it (Debian: apt-get install nix-bin)")


if __name__ == "__main__":
    main(sys.argv[1:])
