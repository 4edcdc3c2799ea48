"""Disk images of the lab's servers, built from Debian's packages and kept in a cache."""

from opendpu.lab.image.cache import KINDS, Kind, build_image, locate

__all__ = ["KINDS", "Kind", "build_image", "locate"]
