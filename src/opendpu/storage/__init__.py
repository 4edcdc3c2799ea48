"""From a volume to the bytes of a host's disk: the volume attacher, its pool and its storage daemon."""
