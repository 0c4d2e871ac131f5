"""The worker: from the start of the container to the last byte of an answer, in ten steps.

 1. `__main__`    reads the environment once, has `early` start the engine's interpreter, and `compose` puts together what follows.
 2. `settings`    turns `variables` and the baked file into frozen values, or lists every mistake.
 3. `engines`     chooses the engine (`fastdeploy/`, or `cpu_engine`), if GPUs and variables allow it for any checkpoint;
    `checkpoint.find` finds the weights: a directory, the image, a cache, a volume or a download.
 4. `engines`     fits the engine to them, and has `fastdeploy/preflight` look whether they can run here at all;
    `launch`      starts it as a child process on loopback, and `engine` watches it for its whole life (`processes`, `logs`);
    `departure`   ends it again when the worker is asked to leave before it serves.
 5. `lifecycle`   says which state the worker is in and which moves are legal.
 6. `serverless`  lets the RunPod SDK (`sdk`) take jobs once the engine has answered, by `taking` them without loss and by
    `delivery` of what they give (`web` answers HTTP instead, within its `limits` and after a look at each `body`; `local` one job
    from a file).
 7. `job`         reads a job's input in any of its three shapes into one `Request`.
 8. `proxy`       sends it to the engine, in the engine's `dialect`, and relays the answer; closing it aborts the engine's work.
 9. `sse`, `batching`, `native`  cut the answer into whole frames, gather those that share a trip, and give the native shape.
10. `metrics` counts and times, `ledger` notes how long the start took, and `health` shows both; `errors` holds the tree of errors and
    the one mapping to OpenAI error objects.

`cpu_engine` is a program of its own, started like any other: FastDeploy's HTTP surface over a numpy forward pass.

Imports point upwards in this order; a file may import those before it: early, errors, variables, settings, job, sse, translation, batching,
native, dialect, logs, processes, launch, lifecycle, departure, ledger, fastdeploy, engine, engines,
proxy, metrics, health, backoff, delivery, taking, sdk, serverless, limits, body, web, local, compose, __main__.

Not here: prompt templates, tokenizers, token counting and sampling (the engine's work); retries of a request (the caller's choice).
"""
