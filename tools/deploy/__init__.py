"""Put an image on a RunPod serverless endpoint, prove that it answers, and go back if it does not: `ci/just deploy image=...`.

 1. `order`      reads the command line into one frozen `Order`, or lists every mistake in it.
 2. `image`      looks the image up in its registry: its digest, and what it was built for.
 3. `fitting`    holds image, GPU pools and variables against each other, before anything is sent.
 4. `api`        speaks RunPod's REST API v2: waits where it says so, and turns its problems into sentences.
 5. `changes`    the body that creates an endpoint, the patch that changes one, the patch that takes it back; nothing but values.
 6. `rollout`    follows a release until workers run it, or says why they do not.
 7. `proofs`     sends the requests of .runpod/tests.json to the endpoint, as a client would.
 8. `release`    all of it in order, with the way back when a step fails.
 9. `words`      what is printed: masked, with the client's first lines at the end.

Imports point upwards in this order. aiohttp is used because the worker's lock holds it already, and because the wait for an answer and the
look at the workers run side by side. Shapes and rules of the API are those of its published description (api-reference-v2/openapi.json of
RunPod's documentation).

Not here: building or pushing images; CPU endpoints; templates, volumes and registry credentials, which are named, not made.
"""
