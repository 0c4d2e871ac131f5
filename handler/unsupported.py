"""Variables that a deployment may bring along from elsewhere and that the worker cannot honour: which are refused, which are reported.

The names are those of runpod-workers/worker-vllm 7a92503 (src/args_builder.py, .runpod/hub.json; older ones from its docs before 1e396e1)
and of runpod-workers/worker-sglang 1b924c9 (engine.py, .runpod/hub.json). A name is left out where the variable changes neither answers
nor memory nor speed and no form sends it.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["INSTEAD", "REFUSED", "refusals", "report"]

_LORA = "the worker serves no LoRA adapters, and the base model would answer in their place; serve weights that the adapter is merged into"

REFUSED: Mapping[str, str] = {
    "ENABLE_LORA": _LORA,
    "LORA_MODULES": _LORA,
    "LORA_ADAPTERS": _LORA,
    "LORA_PATHS": _LORA,
    "DEFAULT_MM_LORAS": _LORA,
    "IPS": "a worker is one machine, and the engine's queues do not listen beyond it",
    "SCHEDULER_PASSWORD": "FastDeploy takes it as a flag only, and everyone who lists processes sees flags",
}
"""Variables without which the deployment would be another one than was asked for, and why they cannot be honoured."""

_NOTHING = """
    ADDITIONAL_CONFIG ALLOWED_LOCAL_MEDIA_PATH ALLOWED_MEDIA_DOMAINS ASYNC_SCHEDULING ATTENTION_BACKEND BASE_PATH CALCULATE_KV_SCALES
    CHAT_TEMPLATE_CONTENT_FORMAT CODE_REVISION CPU_OFFLOAD_GB DBO_PREFILL_TOKEN_THRESHOLD DECODE_CONTEXT_PARALLEL_SIZE DEVICE
    DISABLE_LOG_STATS DISABLE_OUTLINES_DISK_CACHE DISABLE_SLIDING_WINDOW DISTRIBUTED_EXECUTOR_BACKEND ENABLE_FLASHINFER_MLA
    ENABLE_FORCE_INCLUDE_USAGE ENABLE_LOG_REQUESTS ENABLE_LORA_BIAS ENABLE_P2P_CHECK ENABLE_PROMPT_EMBEDS ENABLE_PROMPT_TOKENS_DETAILS
    ENABLE_TORCH_COMPILE EXCLUDE_TOOLS_WHEN_TOOL_CHOICE_NONE FILE_STORAGE_PATH FULLY_SHARDED_LORAS
    GUIDED_DECODING_DISABLE_ADDITIONAL_PROPERTIES GUIDED_DECODING_DISABLE_FALLBACK INTERLEAVE_MM_STRINGS KV_CACHE_DTYPE
    KV_TRANSFER_CONFIG LOAD_BALANCE_METHOD LOG_REQUESTS LONG_LORA_SCALING_FACTORS LORA_DTYPE LORA_EXTRA_VOCAB_SIZE MAX_CPU_LORAS MAX_LORAS
    MAX_LORA_RANK MAX_PARALLEL_LOADING_WORKERS MEDIA_IO_KWARGS MODEL_LOADER_EXTRA_CONFIG NUM_SCHEDULER_STEPS OPENAI_RESPONSE_ROLE
    OVERRIDE_ATTENTION_DTYPE PREEMPTION_MODE PYTORCH_ALLOC_CONF QUANTIZATION_PARAM_PATH RAW_OPENAI_OUTPUT RAY_WORKERS_USE_NSIGHT
    RESPONSE_ROLE RETURN_TOKENS_AS_TOKEN_IDS SAMPLING_BACKEND SCHEDULER_DELAY_FACTOR SCHEDULE_CONSERVATIVENESS SCHEDULE_POLICY
    SCHEDULING_POLICY SHOW_TIME_COST SKIP_TOKENIZER_INIT TOKENIZER_MODE TOKENIZER_REVISION TRITON_ATTENTION_REDUCE_IN_FP32
    TRUST_REMOTE_CODE TRUST_REQUEST_CHAT_TEMPLATE VIDEO_PRUNING_RATE VLLM_USE_DEEP_GEMM
"""

_NAMES = {
    "set CHAT_TEMPLATE": "CUSTOM_CHAT_TEMPLATE",
    "set DEFAULT_MIN_BATCH_SIZE": "STREAM_INTERVAL",
    "set ENABLE_PREFIX_CACHING=false": "DISABLE_RADIX_CACHE",
    "set ENGINE_STARTUP_TIMEOUT": "VLLM_STARTUP_TIMEOUT",
    "set EPLB_CONFIG": "EPLB_LOG_BALANCEDNESS EPLB_STEP_INTERVAL EPLB_WINDOW_SIZE NUM_REDUNDANT_EXPERTS",
    "set FASTDEPLOY_EXTRA_ARGS": "VLLM_CONFIG_FILE VLLM_EXTRA_ARGS",
    "set GPU_MEMORY_UTILIZATION": "MEM_FRACTION_STATIC",
    "set GRAPH_OPTIMIZATION_CONFIG": "COMPILATION_CONFIG CUDA_GRAPH_SIZES DISABLE_CUDA_GRAPH ENFORCE_EAGER MAX_SEQ_LEN_TO_CAPTURE",
    "set GUIDED_DECODING_BACKEND": "STRUCTURED_OUTPUTS_CONFIG",
    "set HF_HOME": "DOWNLOAD_DIR",
    "set LOAD_CHOICES": "LOAD_FORMAT",
    "set LOGITS_PROCESSORS": "LOGITS_PROCESSOR_PATTERN",
    "set LOG_LEVEL": "LOG_LEVEL_HTTP UVICORN_LOG_LEVEL",
    "set MAX_MODEL_LEN": "CONTEXT_LENGTH",
    "set MAX_NUM_BATCHED_TOKENS": "CHUNKED_PREFILL_SIZE MAX_PREFILL_TOKENS",
    "set MAX_NUM_SEQS": "MAX_RUNNING_REQUESTS",
    "set MAX_PROCESSOR_CACHE": "MM_PROCESSOR_CACHE_GB",
    "set NUM_GPU_BLOCKS_OVERRIDE": "KV_CACHE_MEMORY_BYTES MAX_TOTAL_TOKENS",
    "set OVERRIDE_POOLER_CONFIG": "POOLER_CONFIG",
    "set REQUEST_STALL_TIMEOUT or HTTP_REQUEST_TIMEOUT": "REQUEST_TIMEOUT",
    "set SEED": "RANDOM_SEED",
    "set SPECULATIVE_CONFIG": "NGRAM_PROMPT_LOOKUP_MAX NGRAM_PROMPT_LOOKUP_MIN NUM_LOOKAHEAD_SLOTS NUM_SPECULATIVE_TOKENS "
    "SPECULATIVE_DISABLE_BY_BATCH_SIZE SPECULATIVE_DRAFT_TENSOR_PARALLEL_SIZE SPECULATIVE_MAX_MODEL_LEN SPECULATIVE_METHOD "
    "SPECULATIVE_MODEL",
    "set SWAP_SPACE": "KV_OFFLOADING_BACKEND KV_OFFLOADING_SIZE",
    "set TENSOR_PARALLEL_SIZE": "PIPELINE_PARALLEL_SIZE",
    "set TOKENIZER": "TOKENIZER_PATH",
    "TOOL_CALL_PARSER alone turns tool calls on": "ENABLE_AUTO_TOOL_CHOICE",
    "the checkpoint's own files decide": "DTYPE GENERATION_CONFIG HF_CONFIG_PATH HF_OVERRIDES OVERRIDE_GENERATION_CONFIG ROPE_SCALING "
    "ROPE_THETA",
    "RunPod checks the keys of callers": "API_KEY VLLM_API_KEY",
    "": _NOTHING,
}

INSTEAD: Mapping[str, str] = {name: instead for instead, names in _NAMES.items() for name in names.split()}
"""Variables of other workers that have no effect here, and what to do instead; "" where nothing here does the same."""

_OFF = frozenset({"", "0", "false", "no", "off", "none", "null", "auto", "[]", "{}"})
"""What asks for nothing, in lower case: the other workers' forms send it for every field that was left alone."""


def refusals(environment: Mapping[str, str]) -> list[str]:
    """Return one sentence for each variable that is set and refused."""
    return [f"{name}: got a value, expected it unset: {REFUSED[name]}" for name in _asked(environment, REFUSED)]


def report(environment: Mapping[str, str]) -> list[str]:
    """Return one warning that lists the variables of other workers that are set, or nothing if there are none."""
    found = [f"{name} ({INSTEAD[name]})" if INSTEAD[name] else name for name in _asked(environment, INSTEAD)]
    return [f"these variables of other workers have no effect here: {', '.join(found)}"] if found else []


def _asked(environment: Mapping[str, str], names: Mapping[str, str]) -> list[str]:
    return [name for name in sorted(names) if environment.get(name, "").strip().lower() not in _OFF]
