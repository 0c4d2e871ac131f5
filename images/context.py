"""What a command works on, read from the user's words: the releases, the image that is asked for, the lock, the cache.

Every command about one image begins with `Context.of(values)`. The commands that errors suggest repeat the user's own words.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from images.arguments import TARGET_KEYS, Key, file_named, yes_or_no
from images.build_errors import ImageError
from images.cache import CACHE, Cache
from images.contents import ImagePlan, ImageSpec, check_spec, plan_image
from images.lock import LOCK, Lock, Pinned, read_lock, requirements_digest, write_lock
from images.lock_entries import LockEntry
from images.releases import RELEASES, Releases, Target, read_releases

__all__ = ["BUILD_KEYS", "IMAGE_KEYS", "PLAN_KEYS", "QUANTIZATION", "Context", "Tell", "say"]

Tell = Callable[[str], object]

_LAYOUTS = CACHE.parent / "images"

IMAGE_KEYS = (
    *TARGET_KEYS,
    Key("base", "Another base image, registry/repository:tag; with it, release may be one that releases.toml lacks."),
    Key("model", "The repository of a model to bake, org/name; empty bakes none."),
    Key("revision", "The model's branch, tag or commit; empty means the one in the lock, or else main."),
    Key("cache", "The folder of fetched inputs; empty means dist/cache."),
)
QUANTIZATION = Key("quantization", "How FastDeploy quantizes the baked model, such as wint4.")
PLAN_KEYS = (
    *IMAGE_KEYS,
    QUANTIZATION,
    Key("user", "The user that a container runs as, such as 1000:1000; empty means the base's, which is root."),
    Key("commit", "The label org.opencontainers.image.revision; empty means a digest of the worker's files."),
)
BUILD_KEYS = (
    *PLAN_KEYS,
    Key("out", "The folder of the OCI layout; empty means one in dist/images."),
    Key("locked", "yes refuses inputs that the lock does not pin, instead of pinning them.", default="no", check=yes_or_no),
)


def say(line: str) -> None:
    """Print a line for the user, apart from a command's result."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One image and the files that it is made with."""

    releases: Releases
    spec: ImageSpec
    lock_file: Path
    cache: Cache
    out: Path
    """The folder of the OCI layout."""

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Context:
        """Return what the values of a command's keys mean.

        Raises:
            ImageError: for an image that is not possible, or a file that cannot be used.
        """
        releases = read_releases(file_named(values["releases"]) if values["releases"] else RELEASES)
        spec = ImageSpec(
            target=releases.target(values["arch"], values["release"], values["cuda"], values["base"]),
            **{name: values.get(name, "") for name in ("model", "revision", "quantization", "commit", "user")},
            words=" ".join(f"{key.name}={shlex.quote(values[key.name])}" for key in IMAGE_KEYS if values.get(key.name)),
        )
        check_spec(spec)
        lock = file_named(values["lock"]) if values.get("lock") else LOCK
        cache = Cache(file_named(values["cache"]) if values["cache"] else CACHE)
        return cls(releases=releases, spec=spec, lock_file=lock, cache=cache, out=_layout(values))

    @property
    def target(self) -> Target:
        """Return the image's target."""
        return self.spec.target

    def lock(self) -> Lock:
        """Return the lock as it is now; a file that is not there yet is an empty lock."""
        return read_lock(self.lock_file) if self.lock_file.exists() else Lock()

    def pinned(self) -> Pinned:
        """Return the lock's rows for the image.

        Raises:
            Unlocked: naming what is not pinned, and the command that pins it.
        """
        spec = self.spec
        return self.lock().pinned(spec.target, requirements_digest(spec.target), spec.model, spec.revision, spec.arguments)

    def check_writable(self) -> None:
        """Check that the lock can be written, before the work that ends with that.

        Raises:
            ImageError: when it cannot.
        """
        if not os.access(self.lock_file if self.lock_file.exists() else self.lock_file.parent, os.W_OK):
            raise ImageError(
                f"lock: {self.lock_file}: cannot be written; name a file in a folder that exists and can be written with lock="
            )

    def keep(self, *entries: LockEntry) -> None:
        """Write rows to the lock.

        Raises:
            ImageError: when the disk is full or cannot be written.
        """
        try:
            write_lock(self.lock_file, self.lock().having(*entries))
        except OSError as error:
            problem = f"lock: {self.lock_file}: cannot be written ({error.strerror or error})"
            raise ImageError(f"{problem}; free space, or name another file with lock=") from None

    def plan(self) -> ImagePlan:
        """Return the plan of the image.

        Raises:
            ImageError: for inputs that are not pinned, or an image that is not possible.
        """
        return plan_image(self.spec, self.releases, self.lock(), self.cache)


def _layout(values: Mapping[str, str]) -> Path:
    if values.get("out"):
        return file_named(values["out"])
    names = ("arch", "release", "cuda", "model", "quantization", "user")
    return _LAYOUTS / "-".join(values[name].replace("/", "--").replace(":", "-") for name in names if values.get(name))
