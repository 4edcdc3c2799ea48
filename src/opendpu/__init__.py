"""OpenDPU: an open DPU cloud stack. See ARCHITECTURE.md for the rooms of this house."""

__version__ = "0.1.0"
