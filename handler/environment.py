"""Which of the worker's variables an engine gets: those of a list, so that a secret of whatever name stays out of it.

An engine runs code that a checkpoint or a plugin brings along, and everything in its environment can be read by that. What is not on the
list an operator adds by name. Nothing is imported here but what every start has: the first engine is started with this.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

__all__ = ["engine_variables", "withheld"]

_NAMES = frozenset(
    """
    PATH HOME USER LOGNAME SHELL HOSTNAME PWD TERM TZ LANG LANGUAGE TMPDIR TEMP TMP VIRTUAL_ENV CONDA_PREFIX CONDA_EXE
    LD_LIBRARY_PATH LD_PRELOAD LIBRARY_PATH CPATH CC CXX MAX_JOBS
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE
    HF_HOME HF_HUB_CACHE HF_ASSETS_CACHE HF_XET_CACHE HF_ENDPOINT HF_HUB_OFFLINE HF_DATASETS_CACHE HF_MODULES_CACHE
    HUGGINGFACE_HUB_CACHE TRANSFORMERS_CACHE TRANSFORMERS_OFFLINE MODELSCOPE_CACHE AISTUDIO_ENDPOINT PPNLP_HOME
    DO_NOT_TRACK
    BATCH_STEP_DECODE BATCH_STEP_PREFILL BLOCK_STEP_DECODE COMPRESSION_RATIO CONTEXT_BLOCK_STEP_PREFILL DIVIDED_STREAM
    ENABLE_EP_DP ENABLE_V1_DATA_PROCESSOR ENABLE_V1_KVCACHE_SCHEDULER ENCODE_FEATURE_ENDPOINT EXPORTER_OTLP_ENDPOINT
    FASTDEPLOY_VERSION FILE_BACKEND_STORAGE_DIR FMQ_CONFIG_JSON FT_DEBUG_LEVEL GLOBAL_LOGGING_INSTRUMENT
    INFER_WITH_REFERENCE_TOKENUM_THRESHOLD MAX_PREFILL_NUM PER_TOKEN_QUANT_FP8_USE_FINEGRAINED_RANGE
    PREFILL_CONTINUOUS_REQUEST_DECODE_RESOURCES PREFILL_NODE_ONE_STEP_STOP PREFILL_NODE_ONE_STEP_STOP_V1 PROFILE_END PROFILE_START
    ROPE_THETA SEQUENCE_STEP_PREFILL SPECULATE_VERIFY_USE_TARGET_SAMPLING SPECULATE_VERIFY_USE_TOPK SPEC_TOKENUM_THRESHOLD
    TRACES_ENABLE TRACES_EXPORTER UNCACHE_WORKER_STDOUT USE_DECODE_UNIFIED_ATTENTION USE_FLASH_MLA USE_TBO ZMQ_SEND_BATCH_DATA
    """.split()
)
"""The system's; the compilers' and certificates'; where models are; and those that FastDeploy 2.3 to 2.6 reads without a prefix of its own
(os.getenv in fastdeploy/ and custom_ops/)."""

_PREFIXES = (
    *("LC_", "XDG_", "PYTHON"),
    *("OMP_", "KMP_", "MKL_", "OPENBLAS_", "GOTO_", "BLIS_", "NUMEXPR_", "MALLOC_"),
    *("CUDA_", "CUDNN_", "CUBLAS", "NVIDIA_", "NCCL_", "NVSHMEM_", "UCX_", "GLOO_", "KVCACHE_", "MOONCAKE_", "MC_"),
    *("FD_", "FLAGS_", "GLOG_", "PADDLE_", "SOT_", "TRITON_", "FLASHINFER_"),
)
"""Of locale and Python; of mathematics on CPUs; of GPUs and their networks; of FastDeploy, PaddlePaddle and what they compile with."""

_PROXIES = frozenset(("http_proxy", "https_proxy", "all_proxy", "no_proxy"))
"""In small letters or in capitals."""

_SECRET = re.compile(r"SECRET|PASSWORD|PASSWD|CREDENTIAL|(?:^|_)(?:TOKEN|KEY|AK|SK|PWD)$")
"""Names that no prefix lets through."""

_ACCOUNT = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]*@", re.IGNORECASE)
"""An address that holds a user's name or password."""


def engine_variables(environment: Mapping[str, str], further: Collection[str] = ()) -> dict[str, str]:
    """Return the variables that an engine gets of the worker's environment: those of the list, and the `further` ones by name.

    Empty FD_ switches are left out: FastDeploy reads them with int().
    """
    return {name: value for name, value in environment.items() if name in further or _is_allowed(name, value)}


def withheld(environment: Mapping[str, str], further: Collection[str] = ()) -> list[str]:
    """Return the names of the variables that an engine does not get, sorted."""
    return sorted(environment.keys() - engine_variables(environment, further).keys())


def _is_allowed(name: str, value: str) -> bool:
    known = name in _NAMES or name.startswith(_PREFIXES) or name.lower() in _PROXIES
    secret = name not in _NAMES and _SECRET.search(name.upper())
    return known and not secret and not _ACCOUNT.search(value) and bool(value or not name.startswith("FD_"))
