"""Loads the xllamacpp wheel, also where the system has no OpenMP runtime."""

import importlib
from typing import Any

__all__ = ["load_wheel"]


def load_wheel() -> Any:
    """The module xllamacpp. Raises ImportError, with the loader's own words, where it cannot be loaded."""
    try:
        return importlib.import_module("xllamacpp")
    except ImportError as error:
        if "libgomp" not in str(error):
            raise
        # Imported here: ctypes is for the machines that need it, and each start of an engine counts.
        from cortex_llamacpp import openmp

        try:
            lent = openmp.lend()
        except OSError as refusal:
            raise ImportError(f"{error}; the wheel cmeel-libomp does not help: {refusal}") from error
        if not lent:
            raise
    return importlib.import_module("xllamacpp")
