"""Four-bit codes to bfloat16 or float16 in one instruction for two of them.

A float whose mantissa's last place is worth 1 lies at 2⁷ for bfloat16 and 2¹⁰ for float16: the code
or'ed into its last bits gives 128 + code (1024 + code), exact. The offset is taken off later, where
it costs nothing. In-line assembly does what LLVM doesn't see: mask and or on two 16-bit words at
once (`lop3`). `PORTABLE` is for the interpreter and other machines.
"""

import triton
import triton.language as tl

_BF16_0 = tl.constexpr("lop3.b32 $0, $1, 0x000f000f, 0x43004300, 0xea;")
_BF16_1 = tl.constexpr(
    "{ .reg .b32 t; shr.u32 t, $1, 4; lop3.b32 $0, t, 0x000f000f, 0x43004300, 0xea; }"
)
_BF16_2 = tl.constexpr(
    "{ .reg .b32 t; shr.u32 t, $1, 8; lop3.b32 $0, t, 0x000f000f, 0x43004300, 0xea; }"
)
_BF16_3 = tl.constexpr(
    "{ .reg .b32 t; shr.u32 t, $1, 12; lop3.b32 $0, t, 0x000f000f, 0x43004300, 0xea; }"
)
_FP16_0 = tl.constexpr("lop3.b32 $0, $1, 0x000f000f, 0x64006400, 0xea;")
_FP16_1 = tl.constexpr(
    "{ .reg .b32 t; shr.u32 t, $1, 4; lop3.b32 $0, t, 0x000f000f, 0x64006400, 0xea; }"
)
_FP16_2 = tl.constexpr(
    "{ .reg .b32 t; shr.u32 t, $1, 8; lop3.b32 $0, t, 0x000f000f, 0x64006400, 0xea; }"
)
_FP16_3 = tl.constexpr(
    "{ .reg .b32 t; shr.u32 t, $1, 12; lop3.b32 $0, t, 0x000f000f, 0x64006400, 0xea; }"
)


@triton.jit
def _lop3(words, bf16: tl.constexpr, fp16: tl.constexpr, BF16: tl.constexpr):
    if BF16:
        out = tl.inline_asm_elementwise(
            bf16, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    else:
        out = tl.inline_asm_elementwise(
            fp16, "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2
        )
    return out


@triton.jit
def offset_nibble(words, J: tl.constexpr, BF16: tl.constexpr, PORTABLE: tl.constexpr):
    """Return bits 4J…4J+3 of int16 `words` as bfloat16 128 + code, or float16 1024 + code."""
    if PORTABLE:
        nibble = ((words.to(tl.int32) >> (4 * J)) & 15).to(tl.float32)
        out = (nibble + 128.0).to(tl.bfloat16) if BF16 else (nibble + 1024.0).to(tl.float16)
    elif J == 0:
        out = _lop3(words, _BF16_0, _FP16_0, BF16)
    elif J == 1:
        out = _lop3(words, _BF16_1, _FP16_1, BF16)
    elif J == 2:
        out = _lop3(words, _BF16_2, _FP16_2, BF16)
    else:
        out = _lop3(words, _BF16_3, _FP16_3, BF16)
    return out
