"""What each flag of FastDeploy's server is for, in the groups that pages show them in.

The tables of the releases hold names, kinds and defaults; no release tells meanings in a form that can be read by a program. A test keeps
both in step.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["GROUPS", "meaning"]

GROUPS: Mapping[str, Mapping[str, str]] = {
    "Model and weights": {
        "quantization": "Quantize the weights while loading: a name, or a JSON object with details. BF16 or none leaves them as they are.",
        "load_choices": "How weights are loaded: default_v1 reads PyTorch's layout too, dummy invents them.",
        "model_impl": "FastDeploy's own implementation of the model, or that of PaddleFormers.",
        "tokenizer": "Folder of another tokenizer than the checkpoint's own. Also: TOKENIZER_NAME.",
        "tokenizer_base_url": "Address of a tokenizer that runs as a service.",
        "model_config_name": "Name of the checkpoint's configuration file.",
        "lm_head_fp32": "Compute the last layer in 32 bits.",
        "moe_gate_fp32": "Compute the routing of a mixture of experts in 32 bits.",
        "task": "The task that the model is loaded for.",
        "runner": "Generate text, or pool it into embeddings and rewards.",
        "convert": "How a model that generates is turned into one that pools.",
        "override_pooler_config": "JSON: settings of the pooler that win over the checkpoint's.",
        "seed": "Seed of the random numbers.",
        "use_warmup": "1 computes a first step before the port opens.",
    },
    "Memory and cache": {
        "gpu_memory_utilization": "Share of each GPU's memory that weights, activations and cache may take together.",
        "block_size": "Tokens in a block of the cache.",
        "num_gpu_blocks_override": "This many blocks of cache instead of as many as fit.",
        "kv_cache_ratio": "Share of the cache that prompts may take; only with ENABLE_V1_KVCACHE_SCHEDULER=0.",
        "static_decode_blocks": "Blocks kept for each request's answer.",
        "prealloc_dec_block_slot_num_threshold": "Free slots of a request's last block at which it gets another one.",
        "enable_prefix_caching": "Keep the cache of prompts that begin alike.",
        "enable_output_caching": "Keep the cache of answers as well, for the next turn of a chat.",
        "swap_space": "Gigabytes of main memory for cache that does not fit on the GPU.",
        "kvcache_storage_backend": "Store that cache is shared through.",
        "write_policy": "When cache is written to that store.",
        "max_encoder_cache": "Tokens of encoded images kept; 0 keeps none, -1 as many as the engine sees fit.",
        "max_processor_cache": "Gigabytes of prepared images kept; 0 keeps none, -1 as many as the engine sees fit.",
    },
    "Scheduling": {
        "max_num_batched_tokens": "Tokens computed in one step.",
        "enable_chunked_prefill": "Compute long prompts in pieces; the engine turns it on by itself unless FD_DISABLE_CHUNKED_PREFILL=1.",
        "max_num_partial_prefills": "Prompts that are computed in pieces at the same time.",
        "max_long_partial_prefills": "How many of these may be long ones.",
        "long_prefill_token_threshold": "Tokens from which a prompt counts as long; 0 lets the engine choose.",
        "enable_overlap_schedule": "Plan the next step while the GPU computes this one.",
        "max_waiting_time": "Seconds that a request may wait for a slot of the HTTP server; -1 means for ever.",
        "scheduler_max_size": "Requests that may wait in the engine; -1 means any number.",
        "scheduler_ttl": "Seconds that a request may live in the engine.",
    },
    "Several GPUs": {
        "tensor_parallel_size": "GPUs that share one copy of the model. Unset: all that the model's heads can be dealt to.",
        "data_parallel_size": "Copies of the model.",
        "local_data_parallel_id": "Which copy this process is.",
        "enable_expert_parallel": "Deal a model's experts out over the GPUs instead of cutting each one.",
        "disable_custom_all_reduce": "Exchange results through NCCL alone.",
        "disable_sequence_parallel_moe": "Keep experts from sharing out the sequence.",
        "enable_flashinfer_allreduce_fusion": "Exchange and normalise results in one kernel.",
        "enable_chunked_moe": "Feed experts in pieces.",
        "chunked_moe_size": "Tokens in such a piece.",
        "enable_moe_scores_elementwise_fuse": "Compute the routing's scores in one kernel.",
        "enable_eplb": "Move experts between GPUs as load asks.",
        "eplb_config": "JSON: how experts are moved.",
        "ep_prefill_use_worst_num_tokens": "Size buffers for the worst case when experts are dealt out.",
        "use_internode_ll_two_stage": "Exchange between machines in two stages.",
    },
    "Answers": {
        "reasoning_parser": "Tells thoughts from answers: qwen3, ernie-x1, ernie-45-vl or ernie-45-vl-thinking.",
        "tool_call_parser": (
            "Who tells calls of tools from text. The worker: auto (the default: by the chat template), hermes, ernie, qwen-xml, glm, "
            "deepseek or gpt-oss. The engine: ernie-x1 or ernie-45-vl-thinking. Nobody: off."
        ),
        "tool_parser_plugin": "Python file that registers more parsers for calls of tools.",
        "chat_template": "Jinja text or file used instead of the checkpoint's own template.",
        "guided_decoding_backend": "Engine of structured output; off ignores what requests ask for.",
        "guided_decoding_disable_any_whitespace": "Forbid free white space in structured output.",
        "enable_logprob": "Let requests ask for log-probabilities.",
        "max_logprobs": "Most log-probabilities for each token; -1 means the whole vocabulary.",
        "logprobs_mode": "Whether they are taken before or after sampling's changes, as probabilities or as logits.",
        "logits_processors": "Classes of Python that change the scores before sampling.",
        "enable_early_stop": "End answers that repeat themselves.",
        "early_stop_config": "JSON: when they do.",
        "enable_keep_sampling_mask": "Tell which tokens sampling kept.",
        "enable_entropy": "Log the entropy of each token.",
    },
    "Images and video": {
        "limit_mm_per_prompt": 'JSON: most images and videos of a request, such as {"image": 4, "video": 1}.',
        "mm_processor_kwargs": "JSON: settings of the part that prepares images and videos.",
        "disable_chunked_mm_input": "Never cut an image between two steps.",
        "deploy_modality": "text leaves images and videos out.",
        "enable_mm": "Out of use: the engine warns and goes on.",
        "enable_mm_output": "Answer with multimodal_content instead of content.",
    },
    "Speed": {
        "graph_optimization_config": 'JSON: CUDA graphs, such as {"use_cudagraph": false} to save memory.',
        "speculative_config": "JSON: guess several tokens at once and check them together.",
        "plas_attention_config": "JSON: sparse attention for long prompts.",
        "benchmark_metrics_config": "JSON: more figures for benchmarks.",
    },
    "Ports and processes": {
        "timeout": "Seconds of silence after which the HTTP server's process is replaced; 0 means never.",
        "timeout_graceful_shutdown": "Seconds that running requests get at the end. Unset: those of ENGINE_STOP_TIMEOUT.",
        "metrics_port": "Port of the metrics where they are not on the server's own.",
        "controller_port": "Port that steers the scheduler; -1 opens none.",
        "engine_worker_queue_port": "Port of the queue between engine and GPUs. Unset: a free one.",
        "cache_queue_port": "Port of the cache's queue. Unset: a free one.",
    },
    "Split roles and clusters": {
        "splitwise_role": "Compute prompts, answers, or both.",
        "innode_prefill_ports": "Ports of the engines on this machine that compute prompts.",
        "cache_transfer_protocol": "How cache travels between them.",
        "pd_comm_port": "Port of the exchange between roles.",
        "rdma_comm_ports": "Ports of the exchange through RDMA.",
        "router": "Address of a router to register with.",
        "scheduler_name": "local, or a scheduler that engines share through Redis.",
        "scheduler_host": "Host of that Redis.",
        "scheduler_port": "Port of that Redis.",
        "scheduler_db": "Its database.",
        "scheduler_topic": "Its topic.",
        "scheduler_min_load_score": "Load from which an engine is passed over.",
        "scheduler_load_shards_num": "Parts of the table of loads.",
        "scheduler_sync_period": "Milliseconds between two looks at the loads.",
        "scheduler_expire_period": "Milliseconds of silence after which an engine is taken for dead.",
        "scheduler_release_load_expire_period": "Seconds after which a request's load is given free.",
        "scheduler_reader_parallel": "Readers of results.",
        "scheduler_reader_batch_size": "Results read at a time.",
        "scheduler_writer_parallel": "Writers of results.",
        "scheduler_writer_batch_size": "Results written at a time.",
    },
    "Training": {
        "dynamic_load_weight": "Open the routes that clear and renew the weights; nothing guards them.",
        "load_strategy": "How renewed weights arrive.",
        "rsync_config": "JSON: where renewed weights come from.",
        "routing_replay_config": "JSON: replay how experts were chosen.",
        "shutdown_comm_group_if_worker_idle": "Close the GPUs' exchange while there is nothing to do.",
    },
}
"""By the heading, and by the flag's destination."""


def meaning(dest: str) -> str:
    """Return what a flag is for."""
    return next(group[dest] for group in GROUPS.values() if dest in group)
