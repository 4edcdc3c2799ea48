"""What every call goes through: the caller's role, the request id, errors as statuses, a count and a log line."""

import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from opendpu.agent import metrics
from opendpu.agent.log import request_id
from opendpu.agent.rpc import REASON_KEY, REQUEST_ID_KEY, code_of, details_of
from opendpu.agent.tls import authorize, roles_of
from opendpu.errors import InvalidArgumentError, OpenDPUError

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method, parse = handler_call_details.method, handler.request_deserializer
        # Bytes come to the guards as they are: who may not call is not parsed, and what can't be parsed is refused in
        # the API's own words (gRPC's would be UNKNOWN).
        if handler.response_streaming:
            stream = _guard_stream(method, parse, handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(stream, None, handler.response_serializer)
        unary = _guard_unary(method, parse, handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(unary, None, handler.response_serializer)


Parse = Callable[[bytes], Any]


def _guard_unary(method: str, parse: Parse, behavior: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def guarded(raw: bytes, context: grpc.aio.ServicerContext) -> Any:
        try:
            answer = await behavior(_enter(method, parse, raw, context), context)
        except Exception as error:
            await _refuse(method, context, error)
        metrics.RPCS.labels(method, "OK").inc()
        return answer

    return guarded


def _guard_stream(
    method: str, parse: Parse, behavior: Callable[..., AsyncIterator[Any]]
) -> Callable[..., AsyncIterator[Any]]:
    async def guarded(raw: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            async for answer in behavior(_enter(method, parse, raw, context), context):
                yield answer
        except Exception as error:
            await _refuse(method, context, error)
        metrics.RPCS.labels(method, "OK").inc()

    return guarded


def _enter(method: str, parse: Parse, raw: bytes, context: grpc.aio.ServicerContext) -> Any:
    # The id goes into logs: what is no plain word is replaced, not written.
    given = dict(context.invocation_metadata() or ()).get(REQUEST_ID_KEY, "")
    plain = isinstance(given, str) and _REQUEST_ID.fullmatch(given)
    request_id.set(str(given) if plain else f"req-{uuid.uuid4()}")
    authorize(method, roles_of(context.auth_context()))
    log.debug("%s from %s", method, context.peer())
    try:
        return parse(raw)
    except DecodeError as error:
        raise InvalidArgumentError(f"the request is damaged or not of this API: {error}") from None


async def _refuse(method: str, context: grpc.aio.ServicerContext, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, OpenDPUError):
        code, reason, details = code_of(error), error.reason, details_of(error)
        log.info("%s refused: %s: %s", method, reason, details)
    else:
        code, reason = grpc.StatusCode.INTERNAL, "Internal"
        details = f"the agent failed ({type(error).__name__}); its log has the story under {request_id.get()}"
        log.error("%s failed", method, exc_info=error)
    metrics.RPCS.labels(method, code.name).inc()
    await context.abort(code, details, trailing_metadata=((REASON_KEY, reason),))
