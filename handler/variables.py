"""The one table of variables that the worker reads: names, kinds, defaults, bounds, and what they mean.

Pages, forms and checks are made from it. The engine's own flags have tables of their own (`fastdeploy/flag_tables/`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["TABLE", "Form", "Group", "Kind", "Variable"]

Kind = Literal["text", "integer", "number", "boolean", "list", "object", "choice", "secret"]
Group = Literal["model", "capacity", "start", "requests", "operation", "image"]
Form = Literal["shown", "advanced", "absent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One variable of the deployment.

    `minimum` and `maximum` bound numbers, both inclusive; `aliases` are names that other workers' users bring along; the first that is set
    wins, the variable's own name before all. `group` is the heading it stands under on pages; `form` says whether a deployment form offers
    it at once, among its advanced fields, or not at all.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    aliases: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    group: Group = "operation"
    form: Form = "advanced"


TABLE: tuple[Variable, ...] = (
    Variable(
        name="MODEL",
        kind="text",
        default="",
        aliases=("MODEL_NAME", "MODEL_REPO"),
        help="The model to serve: a Hugging Face repository (org/name) or a directory that holds a checkpoint.",
        group="model",
        form="shown",
    ),
    Variable(
        name="MODEL_REVISION",
        kind="text",
        default="",
        aliases=("REVISION",),
        help="Branch, tag or commit of the repository; empty means its default branch.",
        group="model",
    ),
    Variable(
        name="MODEL_SOURCE",
        kind="choice",
        default="huggingface",
        choices=("huggingface", "modelscope", "aistudio"),
        help="Where a repository is: from Hugging Face the worker downloads it, from the others FastDeploy does so itself.",
        group="model",
    ),
    Variable(
        name="BAKED_MODELS",
        kind="text",
        default="/models",
        help="The folder of an image's baked models, a Hugging Face cache. Set by the image.",
        group="image",
        form="absent",
    ),
    Variable(
        name="HF_HOME",
        kind="text",
        default="",
        help="Where downloads go; empty means the network volume if one is mounted, else the library's own folder.",
        group="model",
    ),
    Variable(
        name="HF_ENDPOINT", kind="text", default="", help="Address of the hub or a mirror; empty means Hugging Face itself.", group="model"
    ),
    Variable(
        name="IMAGE_ARCHITECTURES",
        kind="text",
        default="",
        help="Compute capabilities that the image holds kernels for, such as 80,90. Set by the image.",
        group="image",
        form="absent",
    ),
    Variable(
        name="IMAGE_CUDA",
        kind="text",
        default="",
        help="The image's CUDA version, such as 12.6. Set by the image.",
        group="image",
        form="absent",
    ),
    Variable(
        name="SERVED_MODEL_NAME",
        kind="text",
        default="",
        aliases=("OPENAI_SERVED_MODEL_NAME_OVERRIDE",),
        help="The name clients use for the model; empty means the value of MODEL.",
        group="model",
        form="shown",
    ),
    Variable(
        name="HF_TOKEN",
        kind="secret",
        default="",
        aliases=("HUGGING_FACE_HUB_TOKEN",),
        help="Access token for gated or private repositories.",
        group="model",
        form="shown",
    ),
    Variable(
        name="ENGINE",
        kind="choice",
        default="auto",
        choices=("auto", "fastdeploy", "cpu"),
        help="The engine that answers; auto takes FastDeploy where it is installed and the CPU engine elsewhere.",
        group="image",
        form="absent",
    ),
    Variable(
        name="FASTDEPLOY_RELEASE",
        kind="choice",
        default="",
        choices=("2.3", "2.4", "2.5", "2.6"),
        help="The release of FastDeploy that is installed; empty means to look.",
        group="image",
        form="absent",
    ),
    Variable(
        name="ENGINE_PYTHON",
        kind="text",
        default="python3",
        help="The interpreter that has FastDeploy installed.",
        group="image",
        form="absent",
    ),
    Variable(
        name="ENGINE_STARTUP_TIMEOUT",
        kind="number",
        default=1200.0,
        minimum=1,
        maximum=86400,
        help="Seconds from the engine's start to its first answer; past that the worker gives up. RunPod itself waits 7 minutes unless "
        "RUNPOD_INIT_TIMEOUT says otherwise.",
        group="start",
    ),
    Variable(
        name="ENGINE_STARTUP_STALL_TIMEOUT",
        kind="number",
        default=180.0,
        minimum=1,
        maximum=86400,
        help="Seconds without a sign of work (a line of log, bytes read, CPU time) after which a starting engine is given up.",
        group="start",
    ),
    Variable(
        name="ENGINE_RESTARTS",
        kind="integer",
        default=1,
        minimum=0,
        maximum=5,
        help="How often an engine that failed to start for no recognised reason is started again; never after its first answer.",
        group="start",
    ),
    Variable(
        name="ENGINE_STOP_TIMEOUT",
        kind="number",
        default=10.0,
        minimum=0,
        maximum=600,
        help="Seconds between asking the engine to stop (SIGTERM) and ending it (SIGKILL).",
        group="start",
    ),
    Variable(
        name="MAX_MODEL_LEN",
        kind="integer",
        default=0,
        minimum=0,
        maximum=10_000_000,
        help="Longest prompt plus answer in tokens; 0 leaves it to the engine.",
        group="capacity",
        form="shown",
    ),
    Variable(
        name="MAX_NUM_SEQS",
        kind="integer",
        default=8,
        minimum=1,
        maximum=256,
        help="Requests that the engine decodes at the same time.",
        group="capacity",
        form="shown",
    ),
    Variable(
        name="MAX_CONCURRENCY",
        kind="integer",
        default=0,
        minimum=0,
        maximum=4096,
        help="Jobs that the worker takes at the same time; 0 means four times MAX_NUM_SEQS, so that the engine's queue never runs dry.",
        group="capacity",
        form="shown",
    ),
    Variable(
        name="DEFAULT_BATCH_SIZE",
        kind="integer",
        default=50,
        minimum=1,
        maximum=65536,
        help="Most tokens in one streamed piece.",
        group="requests",
    ),
    Variable(
        name="DEFAULT_MIN_BATCH_SIZE",
        kind="integer",
        default=1,
        minimum=1,
        maximum=65536,
        help="Most tokens in the first streamed piece of a job.",
        group="requests",
    ),
    Variable(
        name="DEFAULT_BATCH_SIZE_GROWTH_FACTOR",
        kind="number",
        default=3.0,
        minimum=1,
        maximum=1000,
        help="By how much each streamed piece may be larger than the one before it, until DEFAULT_BATCH_SIZE.",
        group="requests",
    ),
    Variable(
        name="REQUEST_STALL_TIMEOUT",
        kind="number",
        default=300.0,
        minimum=1,
        maximum=86400,
        help="Seconds without a byte from the engine after which a request is given up with a 504.",
        group="requests",
    ),
    Variable(
        name="REQUEST_STALLS_FATAL",
        kind="integer",
        default=3,
        minimum=1,
        maximum=1000,
        help="After so many requests in a row that were given up the engine is taken for dead.",
        group="requests",
    ),
    Variable(
        name="STRICT_REQUESTS",
        kind="boolean",
        default=False,
        help="Refuse requests with options that the engine would ignore in silence, instead of naming them in the log.",
        group="requests",
    ),
    Variable(
        name="RAW_ENGINE_OUTPUT",
        kind="boolean",
        default=False,
        help="Pass the engine's answers on as they are, without the repairs that make them OpenAI's.",
        group="requests",
    ),
    Variable(
        name="ALLOW_PRIVATE_MEDIA",
        kind="boolean",
        default=False,
        help="Let requests name images and videos on this machine (file://) and on addresses that are not public: FastDeploy opens them.",
        group="requests",
    ),
    Variable(
        name="MAX_TOKENS_LIMIT",
        kind="integer",
        default=0,
        minimum=0,
        maximum=10_000_000,
        help="Most tokens that one answer may ask for; 0 means no limit. FastDeploy 2.3 and 2.4 cannot abort a request.",
        group="requests",
    ),
    Variable(
        name="PORT",
        kind="integer",
        default=0,
        minimum=0,
        maximum=65535,
        help="Port of the worker's own HTTP server; 0 means none. RunPod sets it on load-balancing endpoints.",
        form="absent",
    ),
    Variable(
        name="PORT_HEALTH",
        kind="integer",
        default=0,
        minimum=0,
        maximum=65535,
        help="Port of the health check and of /metrics where it is not PORT; 0 means PORT.",
        form="absent",
    ),
    Variable(
        name="HEALTH_CHECK_PATH",
        kind="text",
        default="/ping",
        help="Path of the health check: 204 while the engine loads, 200 when it is ready, 503 when it is dead or the worker leaves.",
    ),
    Variable(
        name="HTTP_REQUEST_TIMEOUT",
        kind="number",
        default=320.0,
        minimum=1,
        maximum=86400,
        help="Seconds that an HTTP request may take in all, streamed answers included; it ends with a 504. RunPod's load balancer cuts it "
        "after 330.",
        group="requests",
    ),
    Variable(
        name="HTTP_DRAIN_TIMEOUT",
        kind="number",
        default=20.0,
        minimum=0,
        maximum=3600,
        help="Seconds that running HTTP requests are given to end after SIGTERM; then they end with a 503.",
        group="requests",
    ),
    Variable(
        name="LOG_LEVEL", kind="choice", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"), help="How much the worker logs."
    ),
)
