"""The command line: how to behave, and FastDeploy's own flags, which a worker passes without knowing who answers."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests import TRANSCRIPTS

from .recordings import SETUPS
from .script import REQUEST_FAULTS, Fault, Pacing
from .server import Behaviour

LOADING_FAULTS: Final = ("exit-0-while-loading", "exit-1-while-loading", "hang-while-loading")
PROCESS_FAULTS: Final = ("ignore-term", "orphan", "freeze")
FAULTS: Final = (*LOADING_FAULTS, *REQUEST_FAULTS, *PROCESS_FAULTS)

_CONVERTERS: Final[dict[str, Callable[[str], Any]]] = {"int": int, "float": float, "json.loads": json.loads}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Everything the command line says."""

    host: str
    port: int
    transcripts: Path
    setup: str
    ignored_fields: tuple[str, ...]
    fallbacks: tuple[str, ...]
    twins: bool
    served_name: str | None
    start_delay_s: float
    worker_log: Path | None
    log_folder: Path | None
    behaviour: Behaviour
    engine_flags: tuple[str, ...]
    """FastDeploy's flags as they came."""


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Read the command line, and of `environ` FastDeploy's `FD_API_KEY` and `FD_LOG_DIR`.

    A wrong command line ends the process with code 2 and a message on stderr, as argparse and FastDeploy do.
    """
    parser = _parser()
    given, engine_flags = parser.parse_known_args(argv)
    engine = _engine_parser(given.flags_table) if given.flags_table else _known_engine_flags()
    flags = engine.parse_args(engine_flags) if given.flags_table else engine.parse_known_args(engine_flags)[0]
    keys = [*(flags.api_key or ()), environ.get("FD_API_KEY", "")]
    if given.synthetic and (given.tokens_per_second <= 0 or given.tokens < 1):
        parser.error("--synthetic: --tokens-per-second must be above 0 and --tokens at least 1")
    behaviour = Behaviour(
        pacing=Pacing(event_delay=given.event_delay, rechunk=given.rechunk),
        faults=tuple(given.fault),
        spared=given.spare,
        api_keys=tuple(key for key in keys if key),
        synthetic_rate=given.tokens_per_second if given.synthetic else 0.0,
        synthetic_tokens=given.tokens,
        graceful_s=float(flags.timeout_graceful_shutdown or 0),
        term_delay_s=given.term_delay,
    )
    return Options(
        host=given.host,
        port=given.port,
        transcripts=given.transcripts / given.release,
        setup=given.setup,
        ignored_fields=tuple(given.ignore_field),
        fallbacks=tuple(given.fallback),
        twins=given.twins,
        served_name=vars(flags).get("served_model_name"),
        start_delay_s=given.start_delay,
        worker_log=given.worker_log,
        log_folder=Path(environ["FD_LOG_DIR"]) if environ.get("FD_LOG_DIR") else None,
        behaviour=behaviour,
        engine_flags=tuple(engine_flags),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.twins.replay", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--release", required=True, help="whose recordings: a folder of --transcripts, such as 2.3")
    add("--transcripts", type=Path, default=TRANSCRIPTS, metavar="DIR")
    add("--setup", choices=SETUPS, default="base", help="the server set-up that was recorded")
    add("--host", default="127.0.0.1")
    add("--port", type=int, required=True, help="0 takes a free one; the start-up lines say which")
    add("--ignore-field", action="append", default=[], metavar="NAME", help="top-level field left out when bodies are compared; repeatable")
    add("--fallback", action="append", default=[], metavar="CASE", help="answers unrecorded requests of its route and `stream`; repeatable")
    add("--twins", action="store_true", help="answer other forms of a recorded question: stream, usage, model name")
    add("--start-delay", type=float, default=0.0, metavar="S", help="port closed until then")
    add("--event-delay", type=float, default=0.0, metavar="S", help="pause before every SSE event but the first")
    add("--rechunk", type=int, default=0, metavar="N", help="write payloads in pieces of N bytes")
    add("--term-delay", type=float, default=0.0, metavar="S", help="how long the end takes after SIGTERM")
    add("--worker-log", type=Path, metavar="FILE", help="text to find in $FD_LOG_DIR/workerlog.0 once loading has begun")
    add("--fault", type=_fault, action="append", default=[], metavar="KIND[:ARG]", help=f"repeatable; one of {', '.join(FAULTS)}")
    add("--spare", type=int, default=0, metavar="N", help="the first N requests for an answer meet no fault")
    add(
        "--flags-table",
        type=Path,
        metavar="FILE",
        help="JSON of the release's flags: refuse any other; without it unknown flags are ignored",
    )
    add("--synthetic", action="store_true", help="answer chat and text completions with made-up tokens")
    add("--tokens-per-second", type=float, default=50.0, metavar="R", help="of each synthetic answer")
    add("--tokens", type=int, default=128, metavar="N", help="of each synthetic answer, unless the request asks for fewer")
    return parser


def _fault(text: str) -> Fault:
    kind, _, argument = text.partition(":")
    if kind not in FAULTS:
        raise argparse.ArgumentTypeError(f"{kind!r} is no fault; there are: {', '.join(FAULTS)}")
    try:
        return Fault(kind=kind, argument=float(argument) if argument else None)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number after the colon") from None


def _known_engine_flags() -> argparse.ArgumentParser:
    """The few of FastDeploy's flags that change what is seen from outside."""
    parser = argparse.ArgumentParser(prog="api_server.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--api-key", action="append")
    parser.add_argument("--timeout-graceful-shutdown", type=int, default=0)
    parser.add_argument("--served-model-name")
    return parser


def _engine_parser(table: Path) -> argparse.ArgumentParser:
    """A parser as the release's own: same flags, types, choices and actions."""
    parser = argparse.ArgumentParser(prog="api_server.py")
    described = json.loads(table.read_bytes())
    for flag in [*described["args"], *described.get("hidden", ())]:
        action = str(flag.get("action", "_StoreAction"))
        names, dest = flag["flags"], flag.get("dest")
        if action == "_HelpAction":
            continue
        if action == "BooleanOptionalAction":
            parser.add_argument(names[0], dest=dest, action=argparse.BooleanOptionalAction, default=flag["default"])
        elif flag.get("nargs") == 0:
            parser.add_argument(*names, dest=dest, action="store_true")
        else:
            parser.add_argument(
                *names,
                **({"dest": dest} if dest else {}),
                action="append" if action == "_AppendAction" else "store",
                type=_CONVERTERS.get(str(flag.get("type")), str),
                choices=flag.get("choices"),
                nargs=flag.get("nargs"),
            )
    return parser
