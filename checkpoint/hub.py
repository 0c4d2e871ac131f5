"""The Hugging Face hub: list a repository's files, download them into the hub's own cache layout, whole or not at all.

Every program that knows the hub finds the files: `blobs/<digest>` holds contents, `snapshots/<commit>/<path>` points to them,
`refs/<branch>` names a commit. Rules, which the tests cite:

 1. A file has its final name only when all its bytes are there and, for every large file, its SHA-256 is the one that the hub names.
 2. What an interrupted download has received stays as `blobs/<digest>.partial`, and the next one, in this process or another, asks for
    the rest. (huggingface_hub alone drops it, so a start-up limit shorter than the download would never be met.)
 3. Two workers on one volume share the library's file locks. Where a network file system ignores locks, rule 1 still holds: a worker
    that finds another one writing the same partial file, or finds the file renamed, stops writing to it. It uses the whole file if that
    is there by then, and otherwise downloads to a name that no other process uses, as it does after wrong bytes.
 4. `refs` is written last: a reference points to a whole snapshot.

Large files come through `receive`; small files and metadata through huggingface_hub.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from checkpoint.config import read_config
from checkpoint.files import damage, holds_checkpoint, snapshot_folder, wanted
from checkpoint.http_client import HttpError, StatusError
from checkpoint.progress import Progress, size_text
from checkpoint.receive import Receiver, is_whole, received
from checkpoint.unavailable import ModelUnavailable, has_user, is_address, is_header_text, masked

__all__ = ["DEFAULT_ENDPOINT", "Hub", "Listing", "RemoteFile", "bearer", "download", "file_address", "list_files"]

log = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "https://huggingface.co"
"""The hub's address where HF_ENDPOINT names no other."""

_STREAMS = 8
"""Files received at the same time; huggingface_hub's own default."""

_RESERVE = 512 << 20
"""Bytes of disk left to logs and caches beside the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """Where the hub is and who asks; an empty endpoint means the library's own default, which HF_ENDPOINT sets."""

    endpoint: str = ""
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file of a repository; small ones, which lie in git itself, have no SHA-256."""

    path: str
    size: int
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files of a repository that an engine needs, at one commit."""

    repository: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]


def file_address(endpoint: str, repository: str, commit: str, path: str) -> str:
    """Return the address of a file's content on the hub at `endpoint`."""
    return f"{endpoint.rstrip('/')}/{repository}/resolve/{commit}/{quote(path)}"


def bearer(token: str) -> dict[str, str]:
    """Return the header that shows the hub a token; none for an empty one."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def list_files(repository: str, revision: str, hub: Hub) -> Listing:
    """Ask the hub which commit the revision means and which files it has; an empty revision means the default branch.

    Raises:
        ModelUnavailable: saying what is wrong and which variable to set.
    """
    _check(hub)
    from huggingface_hub import HfApi

    # The library's HTTP client logs every address, and those of contents carry signatures.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    with _explained(repository, revision, hub):
        api = HfApi(endpoint=hub.endpoint or None, token=hub.token or None)
        try:
            found = api.model_info(repository, revision=revision or None, files_metadata=True, timeout=10)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"JSON of another kind, {type(error).__name__}: {error}") from error
    files = {file.rfilename: file for file in found.siblings or ()}
    chosen = []
    for path in wanted(files):
        large = files[path].lfs
        chosen.append(RemoteFile(path=path, size=files[path].size or 0, sha256=large.sha256 if large else ""))
    if not holds_checkpoint(file.path for file in chosen):
        kinds = ", ".join(sorted({Path(path).suffix for path in files} - {""})) or "none"
        raise ModelUnavailable(
            f"MODEL={repository}: the repository holds no checkpoint that an engine here reads; expected config.json and weights in one of "
            f"*.safetensors, *.pdparams, pytorch_model*.bin, got files of the kinds {kinds}: choose another repository"
        )
    return Listing(repository=repository, revision=revision, commit=str(found.sha), files=tuple(chosen))


def download(listing: Listing, cache: Path, hub: Hub, accept: Callable[[Mapping[str, Any]], None] = lambda _: None) -> Path:
    """Download the files of a listing into `cache` and return the folder of the snapshot; files that are there are not fetched again.

    `accept` gets the config.json before any large file is fetched, and raises where such a checkpoint would be of no use.

    Raises:
        ModelUnavailable: saying what is wrong and which variable to set. What has been received stays for the next try.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    folder = snapshot_folder(cache, listing.repository)
    with _explained(listing.repository, listing.revision, hub, cache):
        disable_progress_bars()
        accept(_config(listing, cache, hub))
        _check_space(listing, folder)
        _receive_large(listing, folder, hub)
        snapshot = Path(
            snapshot_download(
                listing.repository,
                revision=listing.commit,
                cache_dir=cache,
                allow_patterns=[glob.escape(file.path) for file in listing.files],
                endpoint=hub.endpoint or None,
                token=hub.token or None,
            )
        )
        _write_reference(folder, listing)
    problems = damage(snapshot)
    if problems:
        raise ModelUnavailable(f"MODEL={listing.repository}: the repository holds no whole checkpoint: {'; '.join(problems)}")
    return snapshot


def _config(listing: Listing, cache: Path, hub: Hub) -> dict[str, Any]:
    """Bring config.json into the cache and return what it holds."""
    from huggingface_hub import hf_hub_download

    endpoint, token = hub.endpoint or None, hub.token or None
    path = hf_hub_download(listing.repository, "config.json", revision=listing.commit, cache_dir=cache, endpoint=endpoint, token=token)
    return read_config(Path(path).parent)


def _check(hub: Hub) -> None:
    """Refuse values that no request can have: the library does not import with such an address, and quotes such a token."""
    if hub.endpoint and not is_address(hub.endpoint):
        raise ModelUnavailable(f"HF_ENDPOINT: got {masked(hub.endpoint)!r}, expected the address of a hub, such as {DEFAULT_ENDPOINT}")
    if has_user(hub.endpoint):
        raise ModelUnavailable(f"HF_ENDPOINT: got {masked(hub.endpoint)!r} with a user name, expected none: set HF_TOKEN for the hub")
    if not is_header_text(hub.token):
        raise ModelUnavailable("HF_TOKEN: got ***, expected printable ASCII without blanks or line breaks")


def _check_space(listing: Listing, folder: Path) -> None:
    blobs = folder / "blobs"
    missing = sum(file.size - received(blobs, file.sha256, file.size) for file in listing.files if file.sha256)
    disk = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if missing and free < missing + _RESERVE:
        raise ModelUnavailable(
            f"MODEL={listing.repository}: {size_text(missing)} are still to be downloaded, and {disk} has {size_text(free)} free; expected "
            f"{size_text(missing + _RESERVE)}: enlarge the container disk or the network volume, or set HF_HOME or HF_HUB_CACHE to a "
            "larger disk"
        )


def _receive_large(listing: Listing, folder: Path, hub: Hub) -> None:
    """Receive every large file that is not there yet, several at a time."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import ENDPOINT

    large = [file for file in listing.files if file.sha256 and not is_whole(folder / "blobs", file.sha256, file.size)]
    if not large:
        return
    total = sum(file.size for file in large)
    log.info("downloading %d files, %s, of %s at commit %s", len(large), size_text(total), listing.repository, listing.commit)
    token = hub.token or get_token() or ""
    with Progress(total, "weights") as progress, ThreadPoolExecutor(_STREAMS, thread_name_prefix="download") as pool:
        receiver = Receiver(folder, bearer(token), progress)
        tasks = []
        try:
            for file in large:
                url = file_address(hub.endpoint or ENDPOINT, listing.repository, listing.commit, file.path)
                tasks.append(pool.submit(receiver.receive, url, file.path, file.sha256, file.size))
            wait(tasks, return_when=FIRST_EXCEPTION)
        finally:
            # Also when this thread is interrupted: the others must not go on for hours.
            receiver.stopped.set()
            cancelled = [task.cancel() for task in tasks]
        failed = [error for task, gone in zip(tasks, cancelled, strict=True) if not gone and (error := task.exception())]
        # A task that was stopped because another one failed has no reason of its own.
        for error in sorted(failed, key=lambda error: isinstance(error, InterruptedError)):
            raise error
    log.info("received %s", progress.summary)


def _write_reference(folder: Path, listing: Listing) -> None:
    """Let the revision, or main where none was asked for, name the commit (rule 4)."""
    if listing.revision == listing.commit:
        return
    reference = folder / "refs" / (listing.revision or "main")
    if reference.is_file() and reference.read_text(encoding="ascii") == listing.commit:
        return
    reference.parent.mkdir(parents=True, exist_ok=True)
    written = reference.with_name(f"{reference.name}.{uuid.uuid4().hex[:8]}.tmp")
    written.write_text(listing.commit, encoding="ascii")
    written.replace(reference)


@contextlib.contextmanager
def _explained(repository: str, revision: str, hub: Hub, cache: Path | None = None) -> Iterator[None]:
    """Turn every error of the hub, the network and the disk into one sentence for the operator."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted_text = f"MODEL={repository}" + (f" at MODEL_REVISION={revision}" if revision else "")
    try:
        yield
    except ModelUnavailable as error:
        raise ModelUnavailable(str(error) if str(error).startswith("MODEL=") else f"{wanted_text}: {error}") from error
    except HFValidationError as error:
        raise ModelUnavailable(f"{wanted_text}: no name of a repository, expected org/name ({error})") from None
    except OfflineModeIsEnabled:
        raise ModelUnavailable(f"{wanted_text}: not on this machine, and HF_HUB_OFFLINE forbids asking the hub: unset it") from None
    except LocalEntryNotFoundError as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ModelUnavailable(f"{wanted_text}: {_reason(cause, repository, hub, cache)}") from error
    except (HttpError, HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        raise ModelUnavailable(f"{wanted_text}: {_reason(error, repository, hub, cache)}") from error


def _reason(error: Exception, repository: str, hub: Hub, cache: Path | None) -> str:
    """Return what an error means to the operator, and what to do."""
    import httpx2
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import HfHubHTTPError

    where = masked(hub.endpoint or ENDPOINT)
    if isinstance(error, (StatusError, HfHubHTTPError)):
        status = error.status if isinstance(error, StatusError) else error.response.status_code
        headers = error.headers if isinstance(error, StatusError) else error.response.headers
        return _reason_of_answer(status, headers.get("X-Error-Code") or "", f"{where}/{repository}", has_token=bool(hub.token))
    if isinstance(error, (HttpError, httpx2.HTTPError, httpx2.InvalidURL)):
        return f"{where} cannot be reached ({str(error) or type(error).__name__}): check the network, or HF_ENDPOINT if it is set"
    if isinstance(error, ValueError):
        return f"{where} does not answer as a hub does ({error}): check HF_ENDPOINT if it is set"
    number = error.errno if isinstance(error, OSError) else None
    if number in {errno.ENOSPC, errno.EDQUOT}:
        return (
            f"no space left on the disk of {cache}: enlarge the container disk or the network volume, or set HF_HOME or HF_HUB_CACHE to a "
            "larger disk"
        )
    if number in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"{cache} cannot be written ({error}): set HF_HOME or HF_HUB_CACHE to a folder that can"
    return f"the download failed: {error}"


def _reason_of_answer(status: int, code: str, page: str, *, has_token: bool) -> str:
    """Return what an HTTP status of the hub means; `code` is its header X-Error-Code."""
    reasons = {
        "GatedRepo": (
            f"the repository is gated: accept its terms at {page}, then set HF_TOKEN",
            f"the repository is gated: accept its terms at {page} with the account that HF_TOKEN belongs to",
        ),
        "RepoNotFound": (
            "no such repository, or it is private: check the name, or set HF_TOKEN",
            "no such repository, or HF_TOKEN may not see it: check the name and the token",
        ),
        "RevisionNotFound": ("no such revision: set MODEL_REVISION to a branch, tag or full commit of the repository",) * 2,
    }
    # Without a token the hub answers 401 both for a private repository and for one that does not exist.
    code = code or ("RepoNotFound" if status == 401 and not has_token else "")
    if code in reasons:
        return reasons[code][has_token]
    advice = {
        401: "it does not know the token: set HF_TOKEN to a valid one",
        403: "the token may not read this repository: give HF_TOKEN read access to it",
        429: "too many requests: set HF_TOKEN, or try again later",
    }
    return f"the hub answered {status} to {page}: {advice.get(status, 'try again later')}"
