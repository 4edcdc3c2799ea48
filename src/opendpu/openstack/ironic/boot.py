"""Boot interface `dpu`: firmware boots from the card's first disk. No ramdisk, PXE or virtual media."""

from typing import Any

from ironic.common import boot_devices, exception
from ironic.conductor import utils as conductor_utils
from ironic.drivers import base


class DPUBoot(base.BootInterface):
    # Ironic asks for "<volume type>_volume_boot".
    capabilities = ("dpu_volume_boot",)

    def get_properties(self) -> dict[str, str]:
        return {}

    def validate(self, task: Any) -> None:
        """The boot disk is the storage interface's to check, the BMC the management interface's."""

    def prepare_ramdisk(self, task: Any, ramdisk_params: Any) -> None:  # noqa: ARG002 (Ironic names it)
        raise exception.UnsupportedDriverExtension(driver=task.node.driver, extension="prepare_ramdisk")

    def clean_up_ramdisk(self, task: Any) -> None:
        """There is none."""

    def prepare_instance(self, task: Any) -> None:
        """Boot from disk from now on. A BMC that does so already is not written to: some reset other settings then."""
        current = task.driver.management.get_boot_device(task)
        if current.get("boot_device") != boot_devices.DISK or not current.get("persistent"):
            conductor_utils.node_set_boot_device(task, boot_devices.DISK, persistent=True)

    def clean_up_instance(self, task: Any) -> None:
        """The boot order may stay: without a disk there is nothing to boot."""
