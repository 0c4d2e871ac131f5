"""RunPod's gateway for one worker, on this machine: `ci/just serve`.

A client talks to `http://127.0.0.1:8000/v2/local/...` as it will talk to `https://api.runpod.ai/v2/ENDPOINT/...`; behind it the real worker
takes jobs through the real RunPod SDK.

1. `variables`     what the worker gets of the caller's environment.
2. `arguments`     turns `key=value` words into frozen `Options`.
3. `worker`        starts `python -m handler` as a child process and ends it with everything that it started.
4. `book`          keeps every job's policy, state and result, as long as the platform does.
5. `operations`    `/run`, `/runsync`, `/status`, `/stream`, `/cancel`, `/retry`, `/purge-queue`, `/health`.
6. `openai_route`  `/openai/v1/...`.
7. `gateway`       puts the routes behind the key, and with them the page at `/` (`page/`).
8. `__main__`      binds the port, starts the worker, waits, cleans up, and ends with the right exit code.

The job API that the worker uses is `tools.serve.job_server`. Whatever RunPod does not document is marked "unverified" where it is decided.

Not here: rate limits per operation, webhooks, several workers, scaling, S3.
"""
