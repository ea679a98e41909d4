"""The precision of T5, which fp16 is too narrow for."""

import torch

T5_IS_WIDE = "T5, a part of which is trained here (its feed-forward layers reach 66,246 and fp16 ends at 65,504)"


def t5_dtype(device: torch.device) -> torch.dtype:
    """bf16 on a GPU that computes in it, else fp32.

    Never fp16: the output of T5's feed-forward layers reaches 66,246 and the largest fp16 number is 65,504.
    """
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32
