"""Triton kernels in place of some of the model's own lines, on a GPU: the same numbers, in less time.

The model asks `can_attend` and `can_gate`, and finds them where the package is imported and Triton is there, which comes
with torch on a GPU. A checkpoint's code by itself does without.
"""

from .gated_gelu import can_gate, gated_gelu
from .packed_attention import can_attend, packed_attention

__all__ = ["can_attend", "can_gate", "gated_gelu", "packed_attention"]
