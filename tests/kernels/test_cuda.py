"""The CUDA C++ kernels, without a GPU: they compile for every target, and what came out is read."""

import re
import shutil
import subprocess
from pathlib import Path

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
