"""Which kernel is chosen, why, and that the registry's strings lead somewhere."""

import dataclasses
import importlib
import inspect
import logging

import pytest
import torch

from soroq.kernels import dispatch
from soroq.kernels.cpu import ops
from soroq.kernels.registry import KERNELS, Kernel


def ask(
    op: str = "matmul_w4", M: int = 1, device: str = "cpu", grad: bool = False
) -> tuple[str, str]:
    dispatch._choose.cache_clear()
    kernel, reason = dispatch.choose(
        op,
        M=M,
        N=2048,
        K=640,
        group_size=128,
        symmetric=True,
        dtype=torch.bfloat16,
        device=device,
        grad=grad,
    )
    return kernel.name, reason


@pytest.fixture(autouse=True)
def fresh_choices() -> None:
    dispatch._choose.cache_clear()
    dispatch._say_once.cache_clear()


def test_without_the_extension_the_reference_runs_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops, "is_built", lambda: False)
    assert ask() == ("matmul_w4_reference", "soroq._cpu is not built")


def test_with_the_extension_few_tokens_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "is_built", lambda: True)
    assert ask(M=ops.MAX_M) == ("matmul_w4_scalar", "first choice")
    name, reason = ask(M=ops.MAX_M + 1)
    assert name == "matmul_w4_reference"
    assert "M 9 > 8" in reason


def test_a_gradient_needs_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "is_built", lambda: True)
    assert ask(grad=True) == ("matmul_w4_reference", "matmul_w4_scalar has no backward")


def test_cpu_kernels_are_not_offered_to_other_devices() -> None:
    assert ask(device="cuda") == ("matmul_w4_reference", "first choice")


def test_unknown_op_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown op 'matmul_w5'; known: .*matmul_w4"):
        ask("matmul_w5")


def test_unsupported_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="takes float32, bfloat16, float16, not float64"):
        dispatch.choose(
            "matmul_w8",
            M=1,
            N=8,
            K=32,
            group_size=None,
            symmetric=True,
            dtype=torch.float64,
            device="cpu",
        )


def test_a_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="soroq.kernels"):
        ask("matmul_w8", M=1)
        ask("matmul_w8", M=2)
    assert [r.message for r in caplog.records] == ["matmul_w8: matmul_w8_reference (first choice)"]


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=lambda k: k.name)
def test_registry_entry_leads_to_functions(kernel: Kernel) -> None:
    assert KERNELS[kernel.name] is kernel
    for target in (kernel.function, kernel.predicate):
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=lambda k: k.name)
def test_kernel_has_a_reference_twin_of_the_same_signature(kernel: Kernel) -> None:
    def signature(target: str) -> list[tuple[str, object]]:
        module, _, function = target.partition(":")
        parameters = inspect.signature(
            getattr(importlib.import_module(module), function)
        ).parameters
        return [(p.name, p.kind) for p in parameters.values()]

    twin = KERNELS[f"{kernel.op}_reference"]
    assert twin.device == "any"
    assert signature(kernel.function) == signature(twin.function)


def test_entries_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        KERNELS["matmul_w4_scalar"].priority = 99  # type: ignore[misc]
