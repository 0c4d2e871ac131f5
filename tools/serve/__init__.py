"""RunPod's gateway for one worker, on this machine: `ci/just serve`.

A client talks to `http://127.0.0.1:8000/v2/local/...` as it will talk to `https://api.runpod.ai/v2/ENDPOINT/...`; behind it the real worker
takes jobs through the real RunPod SDK.

1. `worker_variables`  the worker's environment, from its caller's.
2. `options`           the arguments as frozen `Options`.
3. `worker_process`    `python -m handler` as a child process, ended with everything that it started.
4. `job_table`         every job's policy, state and result, kept as long as the platform keeps them.
5. `operations`        `/run`, `/runsync`, `/status`, `/stream`, `/cancel`, `/retry`, `/purge-queue`, `/health`.
6. `openai_route`      `/openai/v1/...`.
7. `gateway`           the routes behind the key, closed to pages of other sites, and the page at `/` (`page/`).
8. `__main__`          bind the port, start the worker, wait, clean up, and end with the right exit code.

The job API that the worker uses is `tools.serve.job_server`. Whatever RunPod does not document is marked "unverified" where it is decided.

Not here: rate limits per operation, webhooks, several workers, scaling, S3.
"""
