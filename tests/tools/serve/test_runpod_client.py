"""RunPod's own client against the gateway, in a process of its own: it reads the address of the API when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.tools.serve.running import KEY, Twin

SCRIPT = r"""
import json, sys, time
import runpod

endpoint = runpod.Endpoint(sys.argv[1], api_key=sys.argv[2])
native = {"messages": [{"role": "user", "content": "What is FastDeploy?"}], "sampling_params": {"temperature": 0, "max_tokens": 64}}
openai = {"openai_route": "/v1/chat/completions", "openai_input": {"messages": native["messages"], "temperature": 0, "stream": True}}
said = {"whole": endpoint.run_sync(native, timeout=60)}

job = endpoint.run({"input": native | {"stream": True}})
said["streamed"] = list(job.stream())
said["status"] = job.status()
said["output"] = job.output()

said["frames"] = list(endpoint.run(openai).stream())

failed = endpoint.run({"input": {"prompt": ""}})
failed.output(timeout=30)
said["failed"] = failed.status()

waiting = [endpoint.run({"input": native}) for _ in range(3)]
said["cancelled"] = [job.cancel() for job in waiting]
said["health"] = endpoint.health()
said["purged"] = endpoint.purge_queue()
try:
    runpod.Endpoint(sys.argv[1], api_key="wrong").health()
except RuntimeError as error:
    said["stranger"] = str(error)
print(json.dumps(said))
"""


def test_runpods_own_client_runs_streams_and_cancels_jobs(twin: Twin, tmp_path: Path) -> None:
    endpoint = twin.base.rpartition("/")[2]
    environment = os.environ | {"RUNPOD_ENDPOINT_BASE_URL": f"{twin.url}/v2", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, endpoint, KEY], env=environment, capture_output=True, text=True, timeout=55, check=False
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)

    [whole] = said["whole"]
    [text] = whole["choices"][0]["tokens"]
    assert text.startswith("FastDeploy is PaddlePaddle's engine")
    pieces = said["streamed"]
    assert "".join(token for piece in pieces for choice in piece["choices"] for token in choice["tokens"]) == text
    assert (said["status"], said["output"]) == ("COMPLETED", pieces)

    assert said["frames"][-1].endswith("data: [DONE]\n\n")
    chunks = [json.loads(line[6:]) for frame in said["frames"] for line in frame.splitlines() if line.startswith("data: {")]
    assert "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]) == text

    assert said["failed"] == "FAILED"
    assert {answer["status"] for answer in said["cancelled"]} <= {"CANCELLED", "COMPLETED"}
    assert said["health"]["jobs"]["failed"] >= 1
    assert said["health"]["workers"]["ready"] == 1
    assert said["purged"]["status"] == "completed"
    assert "401" in said["stranger"]
