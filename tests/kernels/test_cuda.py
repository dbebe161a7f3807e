"""The CUDA C++ kernels, without a GPU: they compile for every target, and what came out is read."""

import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from soroq.kernels.cuda import config, matmul_tiles, warpgroups
from soroq.kernels.cuda.config import CudaConfig
from soroq.kernels.cuda.warpgroups import WarpgroupConfig
from soroq.kernels.tiles import TiledWeight

SOURCE = Path(matmul_tiles.__file__).with_suffix(".cu")
NVCC = shutil.which("nvcc")


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("capability", [80, 90])
def test_what_int4_launches_spills_nothing(capability: int, tmp_path: Path) -> None:
    assert NVCC is not None
    command = [NVCC, "-std=c++17", "-cubin", f"-arch=sm_{capability}", "-Xptxas", "-v"]
    command += ["-DSOROQ_ONLY_GROUPS_OF_128", "-o", str(tmp_path / "kernel.cubin"), str(SOURCE)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = re.findall(
        r"function '\w*(bfloat16|half)Li(\d)ELi(\d)ELi(\d)ELi4ELi1E.*?(\d+) bytes spill stores"
        r".*?Used (\d+) registers",
        said,
        flags=re.DOTALL,
    )
    assert len(found) == 2 * len(config.REGISTERS)
    for dtype, tokens_8, rows_16, depth, spilled, registers in found:
        key = (int(tokens_8), int(rows_16), int(depth))
        assert int(spilled) == 0, (dtype, key)
        # what tells how many blocks an SM holds is not too far off
        assert int(registers) <= config.REGISTERS[key] + 16, (dtype, key)


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_what_multiplies_many_tokens_spills_nothing_and_waits_for_nothing(tmp_path: Path) -> None:
    assert NVCC is not None
    source = SOURCE.with_name("matmul_warpgroups.cu")
    command = [NVCC, "-std=c++17", "-cubin", "-gencode=arch=compute_90a,code=sm_90a"]
    command += ["-Xptxas", "-v", "-o", str(tmp_path / "kernel.cubin"), str(source)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "serialized" not in said  # the compiler's word for products that wait for each other
    found = re.findall(
        r"function '\w*multiply_warpgroups\w*(bfloat16|half)Li(\d+)ELi(\d)E.*?"
        r"(\d+) bytes spill stores.*?Used (\d+) registers",
        said,
        flags=re.DOTALL,
    )
    assert len(found) == 2 * (2 * len(warpgroups.REGISTERS) - 1)  # 256 tokens only by int4
    for dtype, tokens, planes, spilled, registers in found:
        assert int(spilled) == 0, (dtype, tokens, planes)
        assert int(registers) <= warpgroups.REGISTERS[int(tokens)], (dtype, tokens, planes)


def test_without_the_library_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOROQ_CUDA_LIBRARY", str(tmp_path / "missing.so"))
    matmul_tiles.library.cache_clear()
    none = torch.empty(0)
    weight = TiledWeight(none, none, None, 64, 128, 128, 4)
    with pytest.raises(RuntimeError, match="the CUDA library is not built"):
        matmul_tiles.run(none, weight, none, CudaConfig(1, 1, 2, 1, 1, 1), none, none)
    warpgroups.is_built.cache_clear()
    with pytest.raises(RuntimeError, match="the CUDA library is not built for sm_90a"):
        warpgroups.run(none, weight, none, WarpgroupConfig(16, 1, 2, 4, 1))
    assert not warpgroups.can_run(torch.device("cpu"))
    matmul_tiles.library.cache_clear()
    warpgroups.is_built.cache_clear()


@pytest.mark.parametrize("kernel", ["matmul_tiles", "matmul_warpgroups"])
def test_arguments_are_in_the_order_of_the_c_interface(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SOURCE.with_name(f"{kernel}.cu").read_text()
    found = re.search(rf'extern "C" int soroq_{kernel}\((.*?)\)', source, flags=re.DOTALL)
    assert found is not None
    names = re.findall(r"(\w+)(?:,|$)", found[1])
    given: list[int | None] = []

    def launch(*arguments: int | None) -> int:
        given.extend(arguments)
        return 0

    library = SimpleNamespace(**{f"soroq_{kernel}": launch})
    monkeypatch.setattr(matmul_tiles, "library", lambda: library)
    monkeypatch.setattr(warpgroups, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=9))
    x, y, extra = torch.ones(20, 384).half(), torch.ones(20, 200), torch.ones(20, 200)
    tiles, scales = torch.ones(4, 3, 64, 32, dtype=torch.int16), torch.ones(6, 256).half()
    zeros = torch.ones(6, 256, dtype=torch.uint8)
    weight = TiledWeight(tiles, scales, zeros, 200, 384, 64, 4)
    partials, counters = torch.ones(1), torch.ones(1, dtype=torch.int32)
    options = {"epilogue": "residual", "extra": extra, "overlaps": False}
    config: CudaConfig | WarpgroupConfig
    if kernel == "matmul_tiles":
        config = CudaConfig(1, 2, 4, 1, 2, 3)
        matmul_tiles.run(x, weight, y, config, partials, counters, **options)
        memory = {"partials": partials.data_ptr(), "counters": counters.data_ptr()}
    else:
        config = WarpgroupConfig(64, 2, 3, 5, 4)
        warpgroups.run(x, weight, y, config, **options)
        memory = {"image": given[names.index("image")]}
    tensors = {"x": x, "tiles": tiles, "scales": scales, "zeros": zeros, "y": y, "residual": extra}
    wanted = {name: tensor.data_ptr() for name, tensor in tensors.items()} | memory | asdict(config)
    wanted |= {"M": 20, "N": 200, "K": 384, "rows": 256, "span": 64, "bits": 4, "is_half": 1}
    wanted |= {"y_is_float": 1, "epilogue": 1, "overlaps": 0, "stream": 9}
    assert dict(zip(names, given, strict=True)) == wanted
