"""Low resolution as super-resolution papers mean it; see `restoration_env.resizing`."""

from restoration_env.resizing import SCALE, bicubic

__all__ = ["SCALE", "bicubic"]
