"""Put an image on a RunPod serverless endpoint, test that it answers, and go back if it does not: `ci/just deploy image=...`.

 1. `deploy_options`    the command line as one frozen `DeployOptions`, or every mistake in it.
 2. `pushed_image`      the image in its registry: its digest, and what it was built for.
 3. `api_answers`, `runpod_api`  RunPod's REST API v2: answers as typed values, waits that end, problems as sentences.
 4. `compatibility`     image, GPUs and variables against each other, before anything is sent.
 5. `memory_check`      the model against the GPUs' memory, by the arithmetic of `tools.plan`.
 6. `endpoint_changes`  the body that creates an endpoint, the patch that changes one, the patch that takes it back; nothing but values.
 7. `rollout_watch`     a release, followed until workers run it, or until it is known why they do not.
 8. `acceptance`        the requests of .runpod/tests.json, sent to the endpoint as a client would.
 9. `deployment`        all of it in order, with the way back when a step fails.
10. `masking`, `client_code`  what is printed: secrets masked; a client's first lines at the end.

Shapes and rules of the API are those of its published description (api-reference-v2/openapi.json of RunPod's documentation). aiohttp is
used because the worker's lock holds it already, and because waiting for an answer and watching the workers run side by side.

Not here: building or pushing images; templates, volumes and registry credentials, which are named, not made.
"""
