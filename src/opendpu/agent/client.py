"""The agent's API for Ironic's conductor and the command line: synchronous, with OpenDPU's errors."""

import json
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration

from opendpu.agent.rpc import MAX_MESSAGE_BYTES, REASON_KEY, REQUEST_ID_KEY, error_of, error_of_reason
from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.agent.v1 import agent_pb2_grpc as rpc
from opendpu.errors import DeadlineError, InvalidArgumentError, NotFoundError, OpenDPUError, UnavailableError

T = TypeVar("T")

_KINDS = {
    "": pb.FUNCTION_KIND_UNSPECIFIED,
    "pf": pb.FUNCTION_KIND_PF,
    "vf": pb.FUNCTION_KIND_VF,
    "sf": pb.FUNCTION_KIND_SF,
}

# Every verb may be repeated, so that a restart of the agent, which takes a second or two, fails no call: four more
# tries (gRPC allows no more) within about 4 s, and not beyond the call's own timeout.
# https://github.com/grpc/proposal/blob/master/A6-client-retries.md
_RETRY = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.4s",
                "maxBackoff": "1.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_RETRY_S = 0.2
_HEALTH_AGAIN_S = 2.0


class AgentClient:
    """Calls of one agent. Every method raises OpenDPU's error of the status it got; calls end after `timeout` seconds.

    `ca`, `certificate` and `key` are PEM files. `server_name` is the name in the agent's certificate when that is not
    the address. `request_id` shows up in the agent's logs of all that is done for these calls.
    """

    def __init__(
        self,
        address: str,
        *,
        ca: str,
        certificate: str,
        key: str,
        server_name: str | None = None,
        request_id: str = "",
        timeout: float = 10.0,
    ) -> None:
        self.address = address
        self.timeout = timeout
        try:
            credentials = grpc.ssl_channel_credentials(*(Path(file).read_bytes() for file in (ca, key, certificate)))
        except OSError as error:
            raise InvalidArgumentError(f"TLS file for the agent at {address}: {error}") from None
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # An agent whose SoC lost power is noticed within 30 s also in the middle of a watch.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # One that comes back is found soon: a restart takes about a second.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.service_config", json.dumps(_RETRY)),
            ("grpc.enable_http_proxy", 0),  # the out-of-band network is reached directly
        ]
        if server_name is not None:
            options.append(("grpc.ssl_target_name_override", server_name))
        self._metadata = ((REQUEST_ID_KEY, request_id),) if request_id else ()
        self._channel = grpc.secure_channel(address, credentials, options)
        self._interfaces = rpc.InterfacesStub(self._channel)
        self._disks = rpc.DisksStub(self._channel)
        self._volumes = rpc.VolumesStub(self._channel)
        self._servers = rpc.ServersStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    # ---- interfaces ----

    def create_interface(
        self, id: str, *, port_id: str, mac: str, mtu: int = 0, kind: str = "vf", deadline: float | None = None
    ) -> pb.Interface:
        if kind not in _KINDS:
            raise InvalidArgumentError(f"kind {kind!r} is none of pf, vf, sf")
        spec = pb.InterfaceSpec(port_id=port_id, mac=mac, mtu=mtu, kind=_KINDS[kind])
        request = pb.CreateInterfaceRequest(id=id, spec=spec, deadline=_duration(deadline))
        answer: pb.Interface = self._call(self._interfaces.CreateInterface, request)
        return answer

    def delete_interface(self, id: str) -> pb.Interface:
        answer: pb.Interface = self._call(self._interfaces.DeleteInterface, pb.DeleteInterfaceRequest(id=id))
        return answer

    def get_interface(self, id: str) -> pb.Interface:
        answer: pb.Interface = self._call(self._interfaces.GetInterface, pb.GetInterfaceRequest(id=id))
        return answer

    def list_interfaces(self) -> list[pb.Interface]:
        return list(self._call(self._interfaces.ListInterfaces, pb.ListInterfacesRequest()).interfaces)

    # ---- disks ----

    def create_disk(
        self,
        id: str,
        *,
        volume_id: str = "",
        config_drive: bytes = b"",
        serial: str = "",
        boot: bool = False,
        read_only: bool = False,
        deadline: float | None = None,
    ) -> pb.Disk:
        if bool(volume_id) == bool(config_drive):
            raise InvalidArgumentError(f"disk {id} needs either volume_id or config_drive")
        spec = pb.DiskSpec(serial=serial, boot=boot, read_only=read_only)
        if volume_id:
            spec.volume_id = volume_id
        else:
            spec.config_drive = config_drive
        request = pb.CreateDiskRequest(id=id, spec=spec, deadline=_duration(deadline))
        answer: pb.Disk = self._call(self._disks.CreateDisk, request)
        return answer

    def delete_disk(self, id: str) -> pb.Disk:
        answer: pb.Disk = self._call(self._disks.DeleteDisk, pb.DeleteDiskRequest(id=id))
        return answer

    def get_disk(self, id: str) -> pb.Disk:
        answer: pb.Disk = self._call(self._disks.GetDisk, pb.GetDiskRequest(id=id))
        return answer

    def list_disks(self) -> list[pb.Disk]:
        return list(self._call(self._disks.ListDisks, pb.ListDisksRequest()).disks)

    # ---- volumes ----

    def create_volume(self, id: str, *, image: str = "", size_bytes: int = 0) -> pb.Volume:
        spec = pb.VolumeSpec(image=image, size_bytes=size_bytes)
        answer: pb.Volume = self._call(self._volumes.CreateVolume, pb.CreateVolumeRequest(id=id, spec=spec))
        return answer

    def delete_volume(self, id: str) -> None:
        self._call(self._volumes.DeleteVolume, pb.DeleteVolumeRequest(id=id))

    def get_volume(self, id: str) -> pb.Volume:
        answer: pb.Volume = self._call(self._volumes.GetVolume, pb.GetVolumeRequest(id=id))
        return answer

    def list_volumes(self) -> list[pb.Volume]:
        return list(self._call(self._volumes.ListVolumes, pb.ListVolumesRequest()).volumes)

    def list_images(self) -> list[pb.Image]:
        return list(self._call(self._volumes.ListImages, pb.ListImagesRequest()).images)

    # ---- the server ----

    def get_server(self) -> pb.Server:
        answer: pb.Server = self._call(self._servers.GetServer, pb.GetServerRequest())
        return answer

    def watch_server(self, timeout: float) -> Iterator[pb.Server]:
        """The server now and each change, for `timeout` seconds; then DeadlineError."""
        return self._stream(self._servers.WatchServer, pb.WatchServerRequest(), timeout)

    # ---- waiting ----

    def wait_ready(self, *, interfaces: Collection[str] = (), disks: Collection[str] = (), timeout: float) -> None:
        """Return when all are READY. A restart of the agent meanwhile is waited out.

        Raises the resource's own error when one is FAILED, NotFoundError when one is gone, DeadlineError naming what
        is still waited for, UnavailableError when the agent itself was not there at the end.
        """

        def ready(kind: str, deleted: bool, resource: pb.Interface | pb.Disk) -> str | None:
            status = resource.status
            if deleted:
                raise NotFoundError(f"{kind} {resource.id} is not there (any more)")
            if status.state == pb.STATE_FAILED:
                raise error_of_reason(status.reason, f"{kind} {resource.id}: {status.message}")
            if status.state == pb.STATE_READY:
                return None
            return _story(resource)

        self._wait_each(interfaces, disks, timeout, ready, "ready")

    def wait_deleted(self, *, interfaces: Collection[str] = (), disks: Collection[str] = (), timeout: float) -> None:
        """Return when none of them is there. Raises DeadlineError or UnavailableError, as `wait_ready` does."""

        def gone(_kind: str, deleted: bool, resource: pb.Interface | pb.Disk) -> str | None:
            return None if deleted else _story(resource)

        self._wait_each(interfaces, disks, timeout, gone, "gone")

    def wait_healthy(self, timeout: float) -> pb.Server:
        """Return the server when its agent is there and says that all is well."""
        deadline = time.monotonic() + timeout
        story = f"the agent at {self.address} did not answer"
        while (left := deadline - time.monotonic()) > 0:
            try:
                for server in self.watch_server(min(left, _HEALTH_AGAIN_S)):
                    if server.healthy:
                        return server
                    story = "; ".join(server.problems)
            except DeadlineError:
                continue
            except UnavailableError as error:
                story = str(error)
                time.sleep(min(_RETRY_S, max(0.0, deadline - time.monotonic())))
        raise DeadlineError(f"not healthy within {timeout:g} s: {story}", reason="WaitingForHealth")

    def _wait_each(
        self,
        interfaces: Collection[str],
        disks: Collection[str],
        timeout: float,
        judge: Callable[[str, bool, Any], str | None],
        goal: str,
    ) -> None:
        """Until `judge(kind, deleted, resource)` says None of each; it says what is waited for, or raises."""
        events: queue.SimpleQueue[tuple[str, bool, Any] | OpenDPUError] = queue.SimpleQueue()
        deadline = time.monotonic() + timeout
        ended = threading.Event()
        waiting = {("interface", each): "not heard of yet" for each in interfaces}
        waiting |= {("disk", each): "not heard of yet" for each in disks}

        def watch(kind: str, ids: Collection[str]) -> None:
            method = self._interfaces.WatchInterfaces if kind == "interface" else self._disks.WatchDisks
            request: Any = (pb.WatchInterfacesRequest if kind == "interface" else pb.WatchDisksRequest)(ids=ids)
            while not ended.is_set() and (left := deadline - time.monotonic()) > 0:
                try:
                    for event in self._stream(method, request, left, ended):
                        events.put((kind, event.deleted, getattr(event, kind)))
                except OpenDPUError as error:
                    events.put(error)
                    if not isinstance(error, UnavailableError):
                        return
                except ValueError:
                    return  # the channel was closed under us
                ended.wait(_RETRY_S)

        for kind, ids in (("interface", interfaces), ("disk", disks)):
            if ids:
                threading.Thread(target=watch, args=(kind, ids), daemon=True, name=f"watch-{kind}").start()
        away: OpenDPUError | None = None
        try:
            while waiting:
                event = events.get(timeout=max(0.0, deadline - time.monotonic()))
                if isinstance(event, UnavailableError):
                    away = event
                elif isinstance(event, OpenDPUError):
                    if not isinstance(event, DeadlineError):
                        raise event
                else:
                    away = None
                    kind, deleted, resource = event
                    story = judge(kind, deleted, resource)
                    if story is None:
                        waiting.pop((kind, resource.id), None)
                    else:
                        waiting[kind, resource.id] = story
        except queue.Empty:
            if away is not None:
                raise away from None
            stories = "; ".join(f"{kind} {key}: {story}" for (kind, key), story in waiting.items())
            raise DeadlineError(f"not {goal} within {timeout:g} s: {stories}") from None
        finally:
            ended.set()

    # ---- calls ----

    def _call(self, method: Callable[..., Any], request: object) -> Any:
        try:
            return method(request, timeout=self.timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._translate(error) from None

    def _stream(
        self, method: Callable[..., Any], request: object, timeout: float, ended: threading.Event | None = None
    ) -> Iterator[Any]:
        call = method(request, timeout=timeout, metadata=self._metadata)
        try:
            for answer in call:
                yield answer
                if ended is not None and ended.is_set():
                    return
        except grpc.RpcError as error:
            raise self._translate(error) from None
        finally:
            call.cancel()

    def _translate(self, error: Any) -> OpenDPUError:
        code, details = error.code(), error.details() or ""
        trailing = dict(error.trailing_metadata() or ())
        reason = str(trailing.get(REASON_KEY, ""))
        if code is grpc.StatusCode.UNAVAILABLE and not reason:
            return UnavailableError(
                f"the agent at {self.address} can't be reached: {details}. Check that opendpu-agent runs there, that "
                "the address is right, and that both sides' certificates are of the same CA and not expired",
                reason="AgentUnreachable",
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and not reason:
            return DeadlineError(f"the agent at {self.address} gave no answer in time")
        return error_of(code, details, reason)


def _duration(seconds: float | None) -> Duration | None:
    return None if seconds is None else Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def _story(resource: pb.Interface | pb.Disk) -> str:
    status = resource.status
    state = pb.State.Name(status.state).removeprefix("STATE_").lower()
    return ": ".join(part for part in (state, status.reason, status.message) if part)
