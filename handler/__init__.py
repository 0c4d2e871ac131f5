"""The worker: a RunPod job or an HTTP request in, whole frames out, on one event loop.

 1. `__main__`    reads the environment once and has `prestart` start the engine's interpreter; `worker` is the program: settings, weights,
    engine, one of three faces, one way out.
 2. `settings`    turns variables and the baked file into frozen values, or lists every mistake; `unsupported` names what cannot be
    honoured.
 3. `engines`     chooses the engine (`fastdeploy/`, or `cpu`), if GPUs and variables allow it, and fits it to the checkpoint that
    `checkpoint.find` finds.
 4. `engine`      owns the engine's process: started with the variables that `environment` lists, proved ready, watched by signs of
    `liveness`, ended with its whole family (`processes`, `logs`).
 5. `lifecycle`   says which state the worker is in and which moves are legal; `shutdown` turns TERM and INT into one event.
 6. `job_queue`   takes jobs once the engine has answered and answers them in slots; `job_api` is RunPod's worker protocol. `sdk_loop` is
    the SDK's own loop, for emergencies. `web` answers HTTP instead, within the limits of its `gate`; `local` answers one job from a file.
 7. `job`         reads a job's input in any of its three shapes into one `Request`, and gives the native shape back (`native`).
 8. `proxy`       sends it to the engine over `http1`, in the `exchange` that the engine makes of it, and relays the answer; leaving it
    aborts the engine's work.
 9. `sse`, `batching`  cut the answer into whole frames, and gather what shares a trip.
10. `metrics`     counts what the `observer` sees; `errors` holds the tree of errors and the one mapping to OpenAI's; `json_text` makes JSON
    safe in both directions; `timeouts` bounds a wait and loses no cancellation.

Imports point upwards in this order; a file may import those before it: timeouts, environment, prestart, errors, unsupported, settings,
json_text, job, sse, parsing, batching, native, exchange, translation, http1, logs, processes, liveness, lifecycle, shutdown,
observer, engine, fastdeploy, cpu, engines, proxy, metrics, job_api, job_queue, sdk_loop, gate, web, local, worker, __main__.

Not here: prompt templates, tokenizers, token counting and sampling (the engine's work); retries of a request (the caller's choice).
"""
