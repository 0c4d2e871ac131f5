"""What ends a deployment, split by what has happened by then.

DeployError
|-- DeployRefused    the command cannot be carried out as it is; nothing was sent that changes anything
|-- ApiError         RunPod's API refused, failed, or answered in another form than it is described to
|-- OutcomeUnknown   a change was sent, and its answer was lost: it may have happened
|-- RolloutFailed    the release is there, and its workers or their answers are not what they should be
`-- Superseded       the endpoint was changed from elsewhere meanwhile
"""

from __future__ import annotations

__all__ = ["ApiError", "DeployError", "DeployRefused", "OutcomeUnknown", "RolloutFailed", "Superseded"]


class DeployError(Exception):
    """Never raised itself; its text is for the person who deploys."""


class DeployRefused(DeployError):
    """The command cannot be carried out as it is. `problems` has one sentence for each reason."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ApiError(DeployError):
    """RunPod has answered that it will not, or cannot; `status` is the HTTP status, 0 where there was no answer at all."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class OutcomeUnknown(DeployError):
    """A change was sent, and no answer came that says whether it happened."""


class RolloutFailed(DeployError):
    """The release does not work, so it is taken back."""


class Superseded(DeployError):
    """The newest release is not this command's, so nothing is taken back."""
