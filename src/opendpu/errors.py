"""Errors that cross a room's door.

Each class stands for one gRPC status code (https://grpc.io/docs/guides/status-codes/), so that a failure keeps its
meaning from the card up to the API's caller. The message says what happened and what a person can do about it.
"""


class OpenDPUError(Exception):
    """Base of every error OpenDPU raises on purpose. `reason` is a word for machines, stable over releases."""

    reason = "Internal"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class InvalidArgumentError(OpenDPUError):
    """The request can never work as it stands: a bad MAC, an image that is not one."""

    reason = "InvalidArgument"


class NotFoundError(OpenDPUError):
    """What the request names does not exist."""

    reason = "NotFound"


class AlreadyExistsError(OpenDPUError):
    """The id is taken by a resource with another specification."""

    reason = "AlreadyExists"


class FailedPreconditionError(OpenDPUError):
    """Not in this state: the volume is in use, the function needs the host powered off."""

    reason = "FailedPrecondition"


class ResourceExhaustedError(OpenDPUError):
    """No function, slot or disk space is left."""

    reason = "ResourceExhausted"


class UnavailableError(OpenDPUError):
    """A part that is needed does not answer now; trying again later is right."""

    reason = "Unavailable"


class DeadlineError(OpenDPUError):
    """A wait ended without what it waited for; the message names that."""

    reason = "DeadlineExceeded"


class AccessDeniedError(OpenDPUError):
    """The caller's certificate does not carry a role that may do this."""

    reason = "PermissionDenied"
