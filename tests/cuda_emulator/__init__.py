"""The CUDA kernels on the CPU, one fiber per CUDA thread.

Where the environment variable FASTWM_CUDA_EMULATOR is the path of the library that `build.py` makes, importing this
package lets backend "cuda" serve CPU tensors.
"""

import os

import torch

from fastwm.ops._backend import Library, add_library

loaded = os.environ.get("FASTWM_CUDA_EMULATOR")

if loaded:
    torch.ops.load_library(loaded)
    add_library(Library("fastwm_emulated", loaded, "cuda", ("cpu",)))
