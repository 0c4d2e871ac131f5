"""The worker: from the start of the container to the last byte of an answer, in ten steps.

 1. `__main__`    reads the environment once and composes what follows; it alone ends the process.
 2. `settings`    turns variables and the baked file into frozen values, or lists every mistake.
 3. `models`      finds the weights: a directory, or a download.
 4. `engine`      starts the engine server as a child process on loopback and watches it for its whole life.
 5. `lifecycle`   says which state the worker is in and which moves are legal.
 6. `serverless`  lets the RunPod SDK take jobs once the engine has answered (`local` runs one job from a file instead).
 7. `job`         reads a job's input in any of its three shapes into one `Request`.
 8. `proxy`       sends it to the engine and relays the answer; closing it aborts the engine's work.
 9. `sse`, `batching`, `native`  cut the answer into whole frames, gather those that share a trip, and give the native shape.
10. `errors`      holds the tree of errors and the one mapping to OpenAI error objects.

`cpu/` is an engine of its own, started like any other: FastDeploy's HTTP surface over a numpy forward pass.

Imports point upwards in this order: errors, settings, models, job, sse, batching, native, lifecycle, engine, proxy, serverless, local,
__main__. A file may import those before it.

Not here: prompt templates, tokenizers, token counting and sampling (the engine's work); retries of a request (the caller's choice).
"""
