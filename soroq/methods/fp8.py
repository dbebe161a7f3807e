"""float8_e4m3fn weights by plain rounding: one scale a row, or one a 128×128 tile.

Scale = largest magnitude / 448 (arXiv 2209.05433, section 3). Rows keep bfloat16 scales beside
bfloat16 models; tiles keep float32 scales, as DeepSeek-V3's layout (arXiv 2412.19437) has them.
"""

import torch

from soroq.core.qtensor import QuantizedTensor, round_float8
from soroq.core.scheme import QuantArgs
from soroq.methods.ranges import absmax_float_scales


def quantize_fp8(weight: torch.Tensor, args: QuantArgs) -> QuantizedTensor:
    """Quantize W (N, K) to float8 with one scale a row, or a tile if `args.block`."""
    return round_float8(weight, absmax_float_scales(weight, args), args)
