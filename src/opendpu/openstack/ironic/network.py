"""Network interface `dpu`: a Neutron port of a bare-metal server is bound and plugged as a virtual machine's is.

Ironic's own interfaces bind with vnic_type `baremetal` and the node's UUID as host, which OVN cannot bind. Here the
port is `normal` on the DPU's chassis, and the agent gives the server a function with the port's own MAC address. (Stock
Ironic forces its port's address on the Neutron port instead; a card's functions take any.)
"""

from typing import Any

from ironic.common import exception, states
from ironic.common import neutron as ironic_neutron
from ironic.drivers import base
from ironic.drivers.modules.network import common
from openstack import exceptions as sdk_exceptions
from oslo_log import log

from opendpu.agent.client import AgentClient
from opendpu.errors import OpenDPUError

from . import agent, claim

LOG = log.getLogger(__name__)
# Where an Ironic port keeps its own address while it shows the Neutron port's.
_OWN_ADDRESS = "dpu_own_address"


class DPUNetwork(common.NeutronVIFPortIDMixin, base.NetworkInterface):
    """One VIF per Ironic port; the interface's id on the card is the Neutron port's."""

    def get_properties(self) -> dict[str, str]:
        return {}

    def validate(self, task: Any) -> None:
        agent.parse_driver_info(task.node)
        if task.portgroups:
            raise exception.InvalidParameterValue(
                f"Node {task.node.uuid} has port groups, which network interface dpu does not have: the card's uplinks "
                "are bonded on the card. Delete them."
            )

    def _attach_port_to_vif(self, task: Any, client: Any, port_like_obj: Any, vif_id: str) -> None:
        """Called by the stock `vif_attach` with the Ironic port it picked. An active node gets the NIC at once.

        Raises NetworkError, and then the port is as it was: a retry must not meet "already attached".
        """
        _show_address(port_like_obj, _neutron_port(client, vif_id).mac_address)
        self._save_vif_to_port_like_obj(port_like_obj, vif_id)
        if task.node.provision_state != states.ACTIVE:
            return
        try:
            with agent.session(
                task, exception.NetworkError, f"VIF {vif_id} can't be plugged into node {task.node.uuid}"
            ) as card:
                try:
                    _plug(task, card, agent.chassis_of(task, card), vif_id)
                    card.wait_ready(interfaces=[vif_id], timeout=agent.READY_TIMEOUT)
                except Exception:
                    _unplug_quietly(card, vif_id)
                    raise
        except Exception:
            self._give_up(task, port_like_obj, vif_id)
            raise

    def vif_detach(self, task: Any, vif_id: str) -> None:
        """An active node loses the NIC first, while it runs. Raises VifNotAttached or NetworkError."""
        port = self._get_port_like_obj_by_vif_id(task, vif_id)
        if task.node.provision_state == states.ACTIVE:
            with agent.session(
                task, exception.NetworkError, f"VIF {vif_id} can't be unplugged from node {task.node.uuid}"
            ) as card:
                card.delete_interface(vif_id)
                card.wait_deleted(interfaces=[vif_id], timeout=agent.RELEASE_TIMEOUT)
        ironic_neutron.unbind_neutron_port(vif_id, context=task.context, reset_mac=False)
        self._forget(port)

    def configure_tenant_networks(self, task: Any) -> None:
        """Bind every VIF of the node to its chassis, give the server its NICs, and wait until OVN has their flows.

        Raises NetworkError.
        """
        vifs = [vif["id"] for vif in self.vif_list(task)]
        if not vifs:
            LOG.warning("Node %s has no VIF: its server has no NIC until one is attached", task.node.uuid)
            return
        with agent.session(task, exception.NetworkError, f"The NICs of node {task.node.uuid} can't be had") as card:
            chassis = agent.chassis_of(task, card)
            for vif_id in vifs:
                _plug(task, card, chassis, vif_id)
            card.wait_ready(interfaces=vifs, timeout=agent.READY_TIMEOUT)

    def unconfigure_tenant_networks(self, task: Any) -> None:
        """Take the NICs away and unbind their ports; the VIFs stay attached in Ironic. Unbinds even if the agent does
        not answer: the control plane must not count on a card that is gone. Raises NetworkError."""
        vifs = [vif["id"] for vif in self.vif_list(task)]
        try:
            if vifs and claim.claimed(task.node):
                with agent.session(
                    task, exception.NetworkError, f"The NICs of node {task.node.uuid} can't be taken away"
                ) as card:
                    for vif_id in vifs:
                        card.delete_interface(vif_id)
                    card.wait_deleted(interfaces=vifs, timeout=agent.RELEASE_TIMEOUT)
        finally:
            for vif_id in vifs:
                ironic_neutron.unbind_neutron_port(vif_id, context=task.context, reset_mac=False)

    def _give_up(self, task: Any, port: Any, vif_id: str) -> None:
        """Undo an attachment that failed; the failure itself is what the caller must hear."""
        self._forget(port)
        try:
            ironic_neutron.unbind_neutron_port(vif_id, context=task.context, reset_mac=False)
        except exception.IronicException:
            LOG.exception("Neutron port %s could not be unbound after a failed attachment", vif_id)

    def _forget(self, port: Any) -> None:
        self._clear_vif_from_port_like_obj(port)
        own = port.internal_info.get(_OWN_ADDRESS)
        if own:
            internal_info = port.internal_info
            del internal_info[_OWN_ADDRESS]
            port.internal_info = internal_info
            port.address = own
            port.save()

    # Nothing boots a ramdisk on these nodes, so it needs no network.
    def add_provisioning_network(self, task: Any) -> None: ...
    def remove_provisioning_network(self, task: Any) -> None: ...
    def add_cleaning_network(self, task: Any) -> None: ...
    def remove_cleaning_network(self, task: Any) -> None: ...
    def validate_inspection(self, task: Any) -> None: ...


def _show_address(port: Any, mac: str) -> None:
    """Let the Ironic port show the NIC's MAC address, which is what Nova and Ironic write into network_data.json.

    Ironic keeps addresses unique over all nodes. Raises NetworkError for a duplicate.
    """
    own = port.address
    if own == mac:
        return
    port.internal_info = {**port.internal_info, _OWN_ADDRESS: own}
    port.address = mac
    try:
        port.save()
    except exception.MACAlreadyExists as error:
        port.obj_reset_changes()
        port.refresh()
        raise exception.NetworkError(
            f"Another Ironic port has the MAC address {mac} already: give the Neutron port another one."
        ) from error


def _neutron_port(client: Any, vif_id: str) -> Any:
    try:
        return client.get_port(vif_id)
    except sdk_exceptions.SDKException as error:
        raise exception.NetworkError(f"Neutron does not give port {vif_id}: {error}") from error


def _plug(task: Any, card: AgentClient, chassis: str, vif_id: str) -> None:
    """Bind one Neutron port and ask the card for its function, without waiting for it."""
    client = ironic_neutron.get_client(context=task.context, auth_from_config=True)
    try:
        # A profile that stock Ironic left would keep ML2/OVN from binding.
        port = client.update_port(
            vif_id, **{"binding:vnic_type": "normal", "binding:host_id": chassis, "binding:profile": {}}
        )
        mtu = client.get_network(port.network_id).mtu
    except sdk_exceptions.SDKException as error:
        raise exception.NetworkError(f"Neutron did not bind port {vif_id} to chassis {chassis}: {error}") from error
    finally:
        client.close()
    if port.binding_vif_type in ("binding_failed", "unbound"):
        raise exception.NetworkError(
            f"Neutron could not bind port {vif_id}: no live OVN chassis has the host name {chassis!r}. Check that "
            "ovn-controller runs on the DPU (`openstack network agent list`), or correct driver_info/dpu_chassis."
        )
    card.create_interface(vif_id, port_id=vif_id, mac=port.mac_address, mtu=mtu or 0)


def _unplug_quietly(card: AgentClient, vif_id: str) -> None:
    try:
        card.delete_interface(vif_id)
        card.wait_deleted(interfaces=[vif_id], timeout=agent.RELEASE_TIMEOUT)
    except OpenDPUError:
        LOG.exception("Interface %s is left on the card after a failed attachment; undeploying removes it", vif_id)
