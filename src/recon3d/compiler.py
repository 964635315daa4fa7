"""Where torch.compile finds the C++ compiler that it calls on a CPU."""

import os
import shutil


def find_compiler() -> str | None:
    """Return the path of a C++ compiler, None where there is none."""
    names = (os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl")
    return next((path for name in names if name and (path := shutil.which(name))), None)
