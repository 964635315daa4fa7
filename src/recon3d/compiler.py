"""Whether torch.compile has what it needs: a C++ compiler, on CUDA Triton as well."""

import logging
import os
import shutil
from functools import cache
from importlib.util import find_spec

logger = logging.getLogger(__name__)

_CONSEQUENCE = "nothing is compiled, and rendering takes many times as long"


def find_compiler() -> str | None:
    """Return the path of a C++ compiler, None where there is none."""
    names = (os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@cache
def can_compile(device_type: str) -> bool:
    """Say whether there is a compiler, and Triton on CUDA; warn once where there is not."""
    if device_type == "cuda" and find_spec("triton") is None:
        logger.warning("Triton is not installed: %s", _CONSEQUENCE)
        return False
    if find_compiler() is None:
        logger.warning("no C++ compiler is found: %s", _CONSEQUENCE)
        return False
    return True
