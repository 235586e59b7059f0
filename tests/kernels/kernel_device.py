"""Where the kernels are tested: on a GPU, or on a CPU by Triton's interpreter. Else a file that asks this is skipped."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton: make test-kernels")
GPU = torch.cuda.is_available()
if not GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1: make test-kernels", allow_module_level=True)

DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
TOLERANCE = 1e-2 if GPU else 1e-5  # of a norm
