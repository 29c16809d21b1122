"""PEP 517 backend: setuptools', which asks for torch only where none is installed.

A build needs torch's headers and libraries, not a second copy of torch. In pip's isolated build `sysconfig`
still names the environment being installed into, so a torch that is already there is found by path, and
nothing is downloaded.
"""

from typing import Any

import setuptools
from native import check_setuptools, find_torch
from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (the hooks that need no change)
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

check_setuptools(setuptools.__version__)


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    torch = [] if find_torch() else ["torch>=2.11"]
    return [*build_meta.get_requires_for_build_wheel(config_settings), *torch]


get_requires_for_build_editable = get_requires_for_build_wheel
