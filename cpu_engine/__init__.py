"""The embedded CPU engine: FastDeploy's HTTP surface over a numpy forward pass of the same checkpoint.

Where there is no GPU the worker starts `python -m cpu_engine --model DIR` as a child process and talks
HTTP to it, exactly as it does to FastDeploy. Read the files in this order; each imports only earlier ones:

 1. refusals.py          the two kinds of refusal: the engine does not start, a request cannot be served
 2. cores.py             free cores and memory of this machine, read before numpy is imported
 3. architecture.py      config.json and generation_config.json -> frozen values, or a refusal that names the key
 4. tensors.py           one safetensors file, mapped and checked -> float32
 5. weights.py           a checkpoint directory in Paddle or torch layout -> the fused matrices of each layer
 6. forward.py           tokens -> logits, with a KV cache per sequence; many sequences packed in one call
 7. tokenizer.py         text <-> token ids; token ids -> text without half characters
 8. template.py          messages -> prompt text, by the checkpoint's own chat template
 9. template_process.py  the same in a process of its own, with bounds of time and memory
10. json_fields.py       typed access to the fields of a JSON object
11. prompts.py           messages, text or token ids of a request -> its prompts
12. answer_form.py       response_format, guided_* and tool_choice -> the grammar of the answer
13. constraint.py        a grammar -> the tokens that it allows at each step (llguidance)
14. sampling.py          one row of logits -> one token
15. stopping.py          decoded text -> text that may be shown, up to a stop string
16. sequence.py          one sequence from its prompt to its finish reason
17. scheduler.py         the thread that owns the model: continuous batching, chunked prefill, abort
18. unsupported.py       the options that are refused by name, since this engine does not do what they ask
19. request.py           a JSON body -> a checked request
20. call_text.py         the text of a demanded tool call -> its name and arguments
21. response.py          token events -> the JSON and the SSE frames of the answer
22. gauges.py            counts -> Prometheus text
23. checkpoint.py        a directory -> everything above that is made from it
24. routes.py            routes, streaming, disconnects, shutdown
25. __main__.py          command line, threads, exit code

Of the rest of the repository it imports `checkpoint.files` only, the one reader of safetensors headers.

Not here: mixture-of-experts or vision models, quantised weights, rope scaling, sliding windows, parsers of tool
calls and thoughts, chat templates that a request brings, embeddings, authentication, TLS, prefix caching,
speculative decoding. Nothing is ever written to disk.
"""
