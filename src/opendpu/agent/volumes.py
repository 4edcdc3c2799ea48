"""Volumes: what disks are made of. The pool itself keeps them, so there is no desired state here."""

import builtins
from typing import TYPE_CHECKING

from opendpu.agent import validate
from opendpu.agent.disks import Disks
from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.errors import FailedPreconditionError

if TYPE_CHECKING:
    from opendpu.storage.attacher import VolumeAttacher, VolumeInfo


class Volumes:
    def __init__(self, attacher: "VolumeAttacher", disks: Disks) -> None:
        self._attacher = attacher
        self._disks = disks

    async def create(self, id: str, spec: pb.VolumeSpec) -> pb.Volume:
        validate.resource_id(id)
        validate.volume(spec)
        info = await self._attacher.create_volume(id, image=spec.image, size_bytes=spec.size_bytes)
        if waiting := self._disks.user_of(id):
            self._disks.wake(waiting)
        return _message(info)

    async def get(self, id: str) -> pb.Volume:
        return _message(await self._attacher.volume(validate.resource_id(id)))

    async def delete(self, id: str) -> None:
        validate.resource_id(id)
        if user := self._disks.user_of(id):
            raise FailedPreconditionError(
                f"volume {id} is in use by disk {user}; delete that first", reason="VolumeInUse"
            )
        await self._attacher.delete_volume(id)

    async def list(self) -> list[pb.Volume]:
        return [_message(info) for info in await self._attacher.volumes()]

    async def images(self) -> builtins.list[pb.Image]:
        return [
            pb.Image(name=image.name, size_bytes=image.size_bytes, sha256=image.sha256)
            for image in await self._attacher.images()
        ]


def _message(info: "VolumeInfo") -> pb.Volume:
    return pb.Volume(
        id=info.id,
        spec=pb.VolumeSpec(image=info.image, size_bytes=info.size_bytes),
        allocated_bytes=info.allocated_bytes,
        in_use_by=info.in_use_by,
    )
