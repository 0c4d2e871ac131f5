"""The commands that put a plan into practice, ready to paste."""

from __future__ import annotations

from tools.plan.fit import Fit, container_disk
from tools.plan.listing import ModelSummary

__all__ = ["commands"]

_IMAGE = "registry.example.com/you/worker-fastdeploy"


def commands(model: ModelSummary, fit: Fit) -> str:
    """Return the lines that push the image and deploy it; the registry is the reader's to replace."""
    asked, image = fit.asked, f"{_IMAGE}:{fit.target.architecture}"
    words = [f"image={image}", f"gpu={asked.pool.asked or asked.pool.name}"]
    words += [f"count={asked.count}"] if asked.count > 1 else []
    variables = {
        "MODEL": model.name if model.is_hosted else "ORG/NAME",
        "QUANTIZATION": asked.quantization,
        "MAX_MODEL_LEN": str(asked.length or ""),
        "MAX_NUM_SEQS": str(asked.requests),
    }
    words += [f"env.{name}={text}" for name, text in variables.items() if text]
    words += [f"disk={container_disk(model.download)}"]
    return "\n".join([f"ci/just push-image {fit.target.arguments} to={image}", f"ci/just deploy {' '.join(words)}"])
