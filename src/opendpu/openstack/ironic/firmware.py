"""Firmware settings between two tenants."""

from typing import Any

import sushy
from ironic.common import exception
from ironic.drivers.modules.redfish import utils as redfish_utils
from oslo_log import log

LOG = log.getLogger(__name__)
# A BMC that has no such action: not found, method not allowed, not implemented.
_UNSUPPORTED = (404, 405, 501)


def reset(task: Any) -> None:
    """Redfish Bios.ResetBios. A BMC without it is said in the log; a failure raises NodeCleaningFailure."""
    node = task.node
    if node.management_interface != "redfish":
        LOG.warning("Node %s: firmware settings are not reset, management interface is not redfish", node.uuid)
        return
    try:
        redfish_utils.get_system(node).bios.reset_bios()
    except (sushy.exceptions.MissingAttributeError, sushy.exceptions.MissingActionError) as error:
        LOG.warning("Node %s: its BMC can't reset firmware settings: %s", node.uuid, error)
    except sushy.exceptions.HTTPError as error:
        if error.status_code not in _UNSUPPORTED:
            raise _failure(error) from error
        LOG.warning("Node %s: its BMC can't reset firmware settings: %s", node.uuid, error)
    except sushy.exceptions.SushyError as error:
        raise _failure(error) from error


def _failure(error: Exception) -> Exception:
    failure: Exception = exception.NodeCleaningFailure(
        f"The BMC did not reset the firmware settings, so the next tenant could read UEFI variables: {error}"
    )
    return failure
