"""The config drive of a deployment, from what Ironic keeps to the bytes of an ISO 9660 image.

Ironic stores in instance_info["configdrive"] either base64 of a gzipped image, a JSON description, or a URL of the
former (https://docs.openstack.org/ironic/latest/install/configdrive.html). It holds passwords and keys: its content
goes into no message.
"""

import base64
import binascii
import zlib
from typing import Any

import requests
from ironic.common import exception
from ironic.conductor import configdrive_utils

# The agent's limit (agent.proto, DiskSpec.config_drive).
MAX_BYTES = 8 * 1024 * 1024
# ECMA-119, 8.1: the first volume descriptor is at logical sector 16 of 2048 bytes, its identifier one byte in.
_IDENTIFIER_AT = 16 * 2048 + 1
_IDENTIFIER = b"CD001"
_FETCH_TIMEOUT = 30


def content(node: Any) -> bytes:
    """The image, or nothing if the deployment has no config drive. Raises InstanceDeployFailure."""
    stored = node.instance_info.get("configdrive")
    if not stored:
        return b""
    if isinstance(stored, dict):
        try:
            stored = configdrive_utils.build_configdrive(node, stored)
        except Exception as error:
            # Its text may quote the user's data.
            raise exception.InstanceDeployFailure(
                f"The config drive could not be built ({type(error).__name__}): give meta_data, user_data, "
                "network_data and vendor_data as the API's reference says, and install genisoimage or xorriso on the "
                "conductor."
            ) from None
    if isinstance(stored, str) and stored.startswith(("http://", "https://")):
        stored = _fetch(stored)
    return decode(stored)


def decode(stored: str | bytes) -> bytes:
    """Base64 and gzip undone, never to more than MAX_BYTES. Raises InstanceDeployFailure."""
    # Base64 makes 4 of 3; gzip of random data adds less than 1 %. Line breaks are allowed for.
    if len(stored) > MAX_BYTES * 3 // 2:
        raise _too_large()
    try:
        packed = base64.b64decode(stored)
        # 16: a gzip header must be there. A bound on the output, because a few KiB can unpack to GiB.
        unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        image = unpacker.decompress(packed, MAX_BYTES + 1)
    except (binascii.Error, ValueError, zlib.error):
        raise _broken("it is not base64 of a gzipped image") from None
    if len(image) > MAX_BYTES:
        raise _too_large()
    if not unpacker.eof:
        raise _broken("it is cut off")
    if image[_IDENTIFIER_AT : _IDENTIFIER_AT + len(_IDENTIFIER)] != _IDENTIFIER:
        raise _broken("it is no ISO 9660 image")
    return image


def _fetch(url: str) -> bytes:
    limit = MAX_BYTES * 3 // 2
    try:
        with requests.get(url, timeout=_FETCH_TIMEOUT, stream=True) as response:
            response.raise_for_status()
            data = response.raw.read(limit + 1, decode_content=True)
    except (requests.RequestException, OSError) as error:
        # The URL is a capability (a signed Swift URL, say), and the exception's text holds it.
        raise exception.InstanceDeployFailure(
            f"The config drive could not be fetched from its URL ({type(error).__name__}): check that the conductor "
            "reaches it and that it has not expired."
        ) from None
    return bytes(data)


def _too_large() -> Exception:
    error: Exception = exception.InstanceDeployFailure(
        f"The config drive is larger than {MAX_BYTES // 1024**2} MiB: put large files behind a URL that user "
        "data fetches."
    )
    return error


def _broken(how: str) -> Exception:
    error: Exception = exception.InstanceDeployFailure(
        f"The config drive is unusable: {how}. Give a directory or JSON to `baremetal node deploy --config-drive`, or "
        "base64 of a gzipped ISO 9660 image."
    )
    return error
