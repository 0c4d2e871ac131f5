"""The embedded CPU engine: FastDeploy's HTTP surface over a numpy forward pass of the same checkpoint.

Where there is no GPU the worker starts `python -m cpu_engine --model DIR` as a child process and talks
HTTP to it, exactly as it does to FastDeploy. Read the files in this order; each imports only earlier ones:

1. refusals.py      the two kinds of refusal: the engine does not start, a request cannot be served
2. cores.py         free cores and memory of this machine, read before numpy is imported
3. architecture.py  config.json and generation_config.json -> frozen values, or a refusal that names the key
4. tensors.py       one safetensors file, mapped and checked -> float32
5. weights.py       a checkpoint directory in Paddle or torch layout -> the fused matrices of each layer
6. forward.py       tokens -> logits, with a KV cache per sequence; many sequences packed in one call
7. tokenizer.py     text <-> token ids; token ids -> text without half characters
8. template.py      messages -> prompt text, by the checkpoint's own chat template
9. sampling.py      one row of logits -> one token
10. stopping.py     decoded text -> text that may be shown, up to a stop string
11. sequence.py     one sequence from its prompt to its finish reason
12. scheduler.py    the thread that owns the model: continuous batching, chunked prefill, abort
13. json_fields.py  typed access to the fields of a JSON object
14. request.py      a JSON body -> a checked request
15. response.py     token events -> the JSON and the SSE frames of the answer
16. gauges.py       counters -> Prometheus text
17. checkpoint.py   a directory -> everything above that is made from it
18. routes.py       routes, streaming, disconnects, shutdown
19. __main__.py     command line, threads, exit code

Of the rest of the repository it imports `checkpoint.files` only, the one reader of safetensors headers.

Not here: mixture-of-experts or vision models, quantised weights, rope scaling, sliding windows, tool-call and
reasoning parsers, guided decoding, chat templates that a request brings, embeddings, authentication, TLS,
prefix caching, speculative decoding. Nothing is ever written to disk.
"""
