"""Image restoration as a reinforcement learning problem."""
from pathlib import Path as _P
_c=_P(__file__).resolve().parent.parent
if (_c/"pyproject.toml").is_file(): __path__.append(str(_c))
