"""Deploy interface `dpu`: one boot, from a cloned volume. No ramdisk and no image download."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ironic.common import exception, states
from ironic.conductor import utils as conductor_utils
from ironic.drivers import base
from ironic.drivers.modules import deploy_utils
from oslo_log import log

from opendpu.agent.client import AgentClient
from opendpu.agent.v1 import agent_pb2 as pb

from . import agent, bootwait, claim, firmware, storage, timeline
from .targets import targets_of

LOG = log.getLogger(__name__)


class DPUDeploy(base.DeployInterface):
    def get_properties(self) -> dict[str, str]:
        return agent.PROPERTIES

    def validate(self, task: Any) -> None:
        """All that can be checked without the network: the conductor calls it within the API request."""
        agent.parse_driver_info(task.node)
        if task.driver.storage.should_write_image(task):
            raise exception.InvalidParameterValue(
                f"Node {task.node.uuid} has storage_interface {task.node.storage_interface!r}; deploy interface dpu "
                "needs 'dpu'."
            )
        # The conductor itself validates power and deploy only.
        task.driver.boot.validate(task)
        task.driver.storage.validate(task)
        task.driver.network.validate(task)

    def prepare(self, task: Any) -> None:
        # Nothing is made here: the conductor does not call clean_up when this fails.
        if task.node.provision_state == states.DEPLOYING:
            timeline.start(task.node)
            _note_source(task)

    @base.deploy_step(priority=100)
    def deploy(self, task: Any) -> None:
        """Raises InstanceDeployFailure, NetworkError or what the BMC's driver raises; the conductor then calls
        `clean_up`, so that a failed deployment leaves nothing."""
        node = task.node
        with agent.session(task, exception.InstanceDeployFailure, "The DPU did not serve the deployment") as client:
            # First of all: without the agent nothing is touched.
            if client.get_server().power != pb.POWER_OFF:
                # Asked of the card and not of the BMC: stock Ironic spends about 0.5 s of CPU on each Redfish call
                # (PBKDF2 over the password, ironic.drivers.modules.redfish.utils.SessionCache).
                conductor_utils.node_power_action(task, states.POWER_OFF)
            if claim.to_release(node):
                # A rebuild, or a try after a failure: start from fresh clones, but keep data volumes.
                claim.release(node, client, blank_volumes=False)
            claim.take(node, client)
            self._give_devices(task, client)
            task.driver.boot.prepare_instance(task)
            self._start(task, client)

    def _give_devices(self, task: Any, client: AgentClient) -> None:
        node = task.node
        storage.make_volumes(task, client)
        timeline.mark(node, "volume-cloned")
        # Disks come up on the card while the ports are bound in Neutron.
        disks = storage.create_disks(task, client)
        task.driver.network.configure_tenant_networks(task)
        client.wait_ready(disks=disks, timeout=agent.READY_TIMEOUT)
        timeline.mark(node, "disk-ready", _latest([disk.status for disk in client.list_disks()]))
        interfaces = client.list_interfaces()
        if interfaces:
            timeline.mark(node, "nic-ready", _latest([interface.status for interface in interfaces]))

    def _start(self, task: Any, client: AgentClient) -> None:
        node = task.node
        before = client.get_server()
        timeline.mark(node, "power-on-requested")
        conductor_utils.node_power_action(task, states.POWER_ON)
        server = bootwait.wait_for_boot(
            client,
            before,
            packet=bool(task.driver.network.vif_list(task)),
            timeout=agent.parse_driver_info(node).boot_timeout,
        )
        for stage, at in bootwait.evidence(server):
            timeline.mark(node, stage, at)

    def clean_up(self, task: Any) -> None:
        """After a failed deployment and before an undeployment: host off, NICs, disks and clones gone, ports unbound.

        Every part is tried, whatever the others did. Raises InstanceDeployFailure naming what could not be done; the
        claim on the card stays until it could, and undeploying or deploying again goes on from there.
        """
        left = [
            failure
            for failure in (
                _try("the host is not powered off", lambda: _power_off(task)),
                _try("NICs are not taken away", lambda: task.driver.network.unconfigure_tenant_networks(task)),
                _try("disks and clones are not taken away", lambda: self._release(task, blank_volumes=False)),
            )
            if failure
        ]
        if left:
            raise exception.InstanceDeployFailure(
                f"{'; '.join(left)}. Repair the cause, then `baremetal node undeploy {task.node.uuid}`: it does "
                "what is left"
            )

    def tear_down(self, task: Any) -> str:
        """After clean_up: data volumes that were to go with the server, and the volume targets."""
        self._release(task, blank_volumes=True)
        deploy_utils.tear_down_storage_configuration(task)
        return str(states.DELETED)

    def take_over(self, task: Any) -> None:
        """Another conductor's node needs nothing: the agent keeps the state. An adopted one has its card claimed, so
        that undeploying it releases the card."""
        if task.node.provision_state == states.ADOPTING:
            claim.mark(task.node)
            _note_source(task)

    @base.clean_step(priority=90, requires_ramdisk=False)
    def verify_card_empty(self, task: Any) -> None:
        """Nothing of the last tenant may be left on the card. Raises NodeCleaningFailure."""
        with agent.session(task, exception.NodeCleaningFailure, "The card can't be looked at") as client:
            interfaces, disks = claim.held(client)
        if interfaces or disks:
            raise exception.NodeCleaningFailure(
                f"The card still holds {claim.describe(interfaces, disks)}. See that no other node has the same "
                "driver_info/dpu_agent_address, then run the clean step deploy.release_card."
            )

    @base.clean_step(priority=80, requires_ramdisk=False)
    def reset_firmware_settings(self, task: Any) -> None:
        """UEFI variables can hold a tenant's data: put them back to the factory's, where the BMC can."""
        firmware.reset(task)

    @base.clean_step(priority=0, requires_ramdisk=False)
    def release_card(self, task: Any) -> None:
        """By hand only: power the host off and take away every disk and interface of the card, whoever made them."""
        conductor_utils.node_power_action(task, states.POWER_OFF)
        with agent.session(task, exception.NodeCleaningFailure, "The card can't be released") as client:
            claim.empty(client)

    @staticmethod
    def _release(task: Any, *, blank_volumes: bool) -> None:
        # Nothing made on the card: it need not answer.
        if claim.to_release(task.node):
            with agent.session(task, exception.InstanceDeployFailure, "The card is not released") as client:
                claim.release(task.node, client, blank_volumes=blank_volumes)


def _note_source(task: Any) -> None:
    """Say in instance_info what the system disk is made of. It is what people look for there, and Ironic 39 can only
    rebuild a node whose image type it knows (ironic.conductor.deployments.start_deploy uses `auto_lessee` before it is
    set)."""
    for target in targets_of(task):
        if target.boot:
            task.node.set_instance_info("image_source", target.image or target.volume_id)
            task.node.set_instance_info("image_type", "whole-disk")
            task.node.save()


def _latest(statuses: list[pb.Status]) -> datetime | None:
    """When the last of them became ready, by the card's clock; None if the card does not say."""
    ended = [status.stages[-1].ended.ToDatetime(tzinfo=UTC) for status in statuses if status.stages]
    return max(ended, default=None)


def _power_off(task: Any) -> None:
    """Ironic's power action forgets the node's last_error, which says why the deployment failed."""
    reason = task.node.last_error
    try:
        conductor_utils.node_power_action(task, states.POWER_OFF)
    finally:
        if reason:
            task.node.last_error = reason
            task.node.save()


def _try(what: str, action: Callable[[], Any]) -> str:
    try:
        action()
    except Exception as error:
        LOG.exception("While cleaning up: %s", what)
        return f"{what}: {error}"
    return ""
