"""The gRPC services: they check what came in and hand on; what happens is decided by the agent's parts."""

# The generated base classes prescribe the methods' names and arguments.
# ruff: noqa: N802, ARG002, A001

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

from opendpu.agent import validate
from opendpu.agent.agent import Agent
from opendpu.agent.server_state import KEY
from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.agent.v1 import agent_pb2_grpc as rpc

Context: TypeAlias = Any  # grpc.aio.ServicerContext, which has no type hints


class InterfacesService(rpc.InterfacesServicer):
    def __init__(self, agent: Agent) -> None:
        self._interfaces = agent.interfaces

    async def CreateInterface(self, request: pb.CreateInterfaceRequest, context: Context) -> pb.Interface:
        id = validate.resource_id(request.id)
        given = request.deadline if request.HasField("deadline") else None
        deadline = validate.deadline(given, self._interfaces.deadline_s)
        resource = await self._interfaces.create(id, self._interfaces.checked(request.spec), deadline)
        return (await self._interfaces.messages([resource]))[0]

    async def GetInterface(self, request: pb.GetInterfaceRequest, context: Context) -> pb.Interface:
        resource = self._interfaces.get(validate.resource_id(request.id))
        return (await self._interfaces.messages([resource]))[0]

    async def DeleteInterface(self, request: pb.DeleteInterfaceRequest, context: Context) -> pb.Interface:
        resource = await self._interfaces.delete(validate.resource_id(request.id))
        if resource is None:
            return pb.Interface(id=request.id, slot=-1)
        return (await self._interfaces.messages([resource]))[0]

    async def ListInterfaces(self, request: pb.ListInterfacesRequest, context: Context) -> pb.ListInterfacesResponse:
        resources = list(self._interfaces.resources.values())
        return pb.ListInterfacesResponse(interfaces=await self._interfaces.messages(resources))

    async def WatchInterfaces(
        self, request: pb.WatchInterfacesRequest, context: Context
    ) -> AsyncIterator[pb.InterfaceEvent]:
        only = validate.watch_ids(list(request.ids))
        async for id in self._interfaces.hub.watch(only or list(self._interfaces.resources), only):
            resource = self._interfaces.resources.get(id)
            if resource is None:
                yield pb.InterfaceEvent(deleted=True, interface=pb.Interface(id=id, slot=-1))
            else:
                yield pb.InterfaceEvent(interface=(await self._interfaces.messages([resource]))[0])


class DisksService(rpc.DisksServicer):
    def __init__(self, agent: Agent) -> None:
        self._disks = agent.disks

    async def CreateDisk(self, request: pb.CreateDiskRequest, context: Context) -> pb.Disk:
        id = validate.resource_id(request.id)
        given = request.deadline if request.HasField("deadline") else None
        deadline = validate.deadline(given, self._disks.deadline_s)
        return self._disks.message(await self._disks.create(id, self._disks.checked(id, request.spec), deadline))

    async def GetDisk(self, request: pb.GetDiskRequest, context: Context) -> pb.Disk:
        resource = self._disks.get(validate.resource_id(request.id))
        return (await self._disks.messages([resource]))[0]

    async def DeleteDisk(self, request: pb.DeleteDiskRequest, context: Context) -> pb.Disk:
        resource = await self._disks.delete(validate.resource_id(request.id))
        return pb.Disk(id=request.id, slot=-1) if resource is None else self._disks.message(resource)

    async def ListDisks(self, request: pb.ListDisksRequest, context: Context) -> pb.ListDisksResponse:
        return pb.ListDisksResponse(disks=await self._disks.messages(list(self._disks.resources.values())))

    async def WatchDisks(self, request: pb.WatchDisksRequest, context: Context) -> AsyncIterator[pb.DiskEvent]:
        only = validate.watch_ids(list(request.ids))
        async for id in self._disks.hub.watch(only or list(self._disks.resources), only):
            resource = self._disks.resources.get(id)
            if resource is None:
                yield pb.DiskEvent(deleted=True, disk=pb.Disk(id=id, slot=-1))
            else:
                yield pb.DiskEvent(disk=self._disks.message(resource))


class VolumesService(rpc.VolumesServicer):
    def __init__(self, agent: Agent) -> None:
        self._volumes = agent.volumes

    async def CreateVolume(self, request: pb.CreateVolumeRequest, context: Context) -> pb.Volume:
        return await self._volumes.create(request.id, request.spec)

    async def GetVolume(self, request: pb.GetVolumeRequest, context: Context) -> pb.Volume:
        return await self._volumes.get(request.id)

    async def DeleteVolume(self, request: pb.DeleteVolumeRequest, context: Context) -> pb.DeleteVolumeResponse:
        await self._volumes.delete(request.id)
        return pb.DeleteVolumeResponse()

    async def ListVolumes(self, request: pb.ListVolumesRequest, context: Context) -> pb.ListVolumesResponse:
        return pb.ListVolumesResponse(volumes=await self._volumes.list())

    async def ListImages(self, request: pb.ListImagesRequest, context: Context) -> pb.ListImagesResponse:
        return pb.ListImagesResponse(images=await self._volumes.images())


class ServersService(rpc.ServersServicer):
    def __init__(self, agent: Agent) -> None:
        self._server = agent.server

    async def GetServer(self, request: pb.GetServerRequest, context: Context) -> pb.Server:
        return await self._server.refresh()

    async def WatchServer(self, request: pb.WatchServerRequest, context: Context) -> AsyncIterator[pb.Server]:
        yield await self._server.refresh()
        async for _ in self._server.hub.watch(first=(), only=(KEY,)):
            yield await self._server.message()


def add_services(server: Any, agent: Agent) -> None:
    rpc.add_InterfacesServicer_to_server(InterfacesService(agent), server)
    rpc.add_DisksServicer_to_server(DisksService(agent), server)
    rpc.add_VolumesServicer_to_server(VolumesService(agent), server)
    rpc.add_ServersServicer_to_server(ServersService(agent), server)
