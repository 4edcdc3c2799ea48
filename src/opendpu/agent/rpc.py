"""How errors travel over gRPC: one status code per class, the reason as trailing metadata."""

import grpc

from opendpu import errors

REASON_KEY = "opendpu-reason"
REQUEST_ID_KEY = "opendpu-request-id"
MAX_MESSAGE_BYTES = 16 << 20
# All metadata of an answer must fit 8 KiB in gRPC's default settings.
_MAX_DETAILS = 2000

_CODES: dict[type[errors.OpenDPUError], grpc.StatusCode] = {
    errors.InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.AccessDeniedError: grpc.StatusCode.PERMISSION_DENIED,
}
_CLASSES = {code: kind for kind, code in _CODES.items()}
_BY_REASON = {kind.reason: kind for kind in _CODES}


def code_of(error: errors.OpenDPUError) -> grpc.StatusCode:
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    return grpc.StatusCode.INTERNAL


def details_of(error: errors.OpenDPUError) -> str:
    return str(error)[:_MAX_DETAILS]


def error_of(code: grpc.StatusCode, message: str, reason: str) -> errors.OpenDPUError:
    """The error that a status code stands for."""
    return _CLASSES.get(code, errors.OpenDPUError)(message, reason=reason or None)


def error_of_reason(reason: str, message: str) -> errors.OpenDPUError:
    """The error of a resource that FAILED: its status has a reason but no code."""
    if reason.startswith("WaitingFor"):
        return errors.DeadlineError(message, reason=reason)
    return _BY_REASON.get(reason, errors.FailedPreconditionError)(message, reason=reason)
