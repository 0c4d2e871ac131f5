"""What ends a deployment, split by what has happened by then."""

from __future__ import annotations

__all__ = ["ApiError", "DeployError", "Refused", "RolloutFailed", "Superseded", "Unsure"]


class DeployError(Exception):
    """Never raised itself; its text is for the person who deploys."""


class Refused(DeployError):
    """The order cannot be carried out as it is; nothing was sent that changes anything. Carries every problem found."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ApiError(DeployError):
    """RunPod has answered that it will not, or cannot; `status` is the HTTP status, 0 where there was no answer at all."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class Unsure(DeployError):
    """A change was sent, and its answer was lost or was a 5xx: it may have happened."""


class RolloutFailed(DeployError):
    """The release is there, and its workers or its answers are not what they should be."""


class Superseded(DeployError):
    """Somebody else has changed the endpoint meanwhile; what follows is theirs, so nothing is rolled back."""
