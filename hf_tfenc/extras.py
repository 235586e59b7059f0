"""Optional packages: asked for only where they are needed."""

import importlib


def require(package: str, extra: str) -> None:
    """Raise OSError, with the command that mends it, unless an optional package can be imported."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise OSError(f"{package} is missing: pip install 'hf_tfenc[{extra}]'.") from error
