"""float8 products against torch's `_scaled_mm` and a reader, few and many rows of x."""

from dataclasses import replace
from typing import Any

import torch

from soroq.bench.kernels.contenders import Contender, inputs, reader
from soroq.bench.kernels.shapes import Shape
from soroq.bench.kernels.timing import Call
from soroq.kernels.triton import fp8_ops, ops
from soroq.kernels.triton.matmul_fp8 import run_many

F8 = torch.float8_e4m3fn
BF16 = torch.bfloat16
FEW = ("square 4096", "4b gate_up", "27b gate_up")
MANY = (("square 4096", 512), ("square 4096", 4096), ("4b gate_up", 2048), ("27b gate_up", 2048))


def contenders(shape: Shape, M: int, device: torch.device) -> list[Contender]:
    """Return who multiplies x (M, K) by float8 weights; x is rounded beforehand unless said."""
    nbytes = shape.N * shape.K
    scales = torch.rand(shape.N, 1, device=device)
    x = inputs(M, shape.K, device)
    codes, x_scales = x.to(F8), torch.rand(M, 1, device=device)
    y = torch.empty(M, shape.N, dtype=BF16, device=device)
    sms = ops.device_facts(device)[1]

    def weights(copies: int) -> list[torch.Tensor]:
        return [torch.randn(shape.N, shape.K, device=device).to(F8) for _ in range(copies)]

    def ours(copies: int) -> Call:
        w = weights(copies)
        if M <= fp8_ops.FEW:
            return lambda i: fp8_ops.few(codes, w[i], x_scales, scales, y)
        launch = fp8_ops.rule_many(sms, M, shape.N)
        return lambda i: run_many(codes, w[i], x_scales, scales, y, launch)

    def ours_exact(copies: int) -> Call:
        w = weights(copies)
        launch = replace(fp8_ops.rule_many(sms, M, shape.N), exact=True, flatten=False)
        return lambda i: run_many(codes, w[i], x_scales, scales, y, launch)

    def whole(copies: int) -> Call:
        w = weights(copies)
        return lambda i: fp8_ops.matmul_fp8(x, w[i], scales)

    def alone(copies: int) -> Call:
        w = weights(copies)
        return lambda i: fp8_ops.matmul_w8_float(x, w[i], scales)

    found = [Contender("soroq W8A8", nbytes, ours), reader(nbytes, device)]
    found.append(Contender("soroq W8A8 with rounding x", nbytes, whole))
    if M <= fp8_ops.FEW:
        found.append(Contender("soroq W8A16", nbytes, alone))
    elif device.type == "cuda":
        found.append(Contender("soroq W8A8, sums of 128", nbytes, ours_exact))
    if device.type == "cuda":
        found += [_scaled(shape, M, device, fast) for fast in (False, True)]
    return found


def _scaled(shape: Shape, M: int, device: torch.device, fast: bool) -> Contender:
    def make(copies: int) -> Call:
        w = [torch.randn(shape.N, shape.K, device=device).to(F8) for _ in range(copies)]
        x = inputs(M, shape.K, device).to(F8)
        a, b = torch.rand(M, 1, device=device), torch.rand(1, shape.N, device=device)

        def call(i: int) -> None:
            torch._scaled_mm(x, w[i].t(), scale_a=a, scale_b=b, out_dtype=BF16, use_fast_accum=fast)

        return call

    name = f"torch _scaled_mm, rows{', fast sums' if fast else ''}"
    return Contender(name, shape.N * shape.K, make)


def errors(shape: Shape, M: int, device: torch.device) -> dict[str, Any]:
    """Return ‖y − ref‖ / ‖ref‖ of each way of summing, rounding to bfloat16 included."""
    x = inputs(M, shape.K, device).to(F8)
    w = torch.randn(shape.N, shape.K, device=device).to(F8)
    a, b = torch.rand(M, 1, device=device), torch.rand(shape.N, 1, device=device)
    truth = (x.double() @ w.double().t()) * a.double() * b.double().t()
    sms = ops.device_facts(device)[1]
    launch = fp8_ops.rule_many(sms, M, shape.N)
    found = {"bfloat16 alone": float((truth.to(BF16).double() - truth).norm() / truth.norm())}
    for exact in (False, True):
        y = torch.full((M, shape.N), float("nan"), dtype=BF16, device=device)
        run_many(x, w, a, b, y, replace(launch, exact=exact, flatten=not exact))
        name = "soroq W8A8, sums of 128" if exact else "soroq W8A8"
        found[name] = float((y.double() - truth).norm() / truth.norm())
    if device.type == "cuda":
        for fast in (False, True):
            y = torch._scaled_mm(
                x, w.t(), scale_a=a, scale_b=b.t(), out_dtype=BF16, use_fast_accum=fast
            )
            name = f"torch _scaled_mm, rows{', fast sums' if fast else ''}"
            found[name] = float((y.double() - truth).norm() / truth.norm())
    return found
