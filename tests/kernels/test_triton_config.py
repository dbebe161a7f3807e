"""Configurations: the rule's limits, and that tuned ones are read, checked and written back."""

from pathlib import Path

import pytest

from soroq.kernels.cuda import config as cuda
from soroq.kernels.cuda import warpgroups
from soroq.kernels.cuda.config import CudaConfig
from soroq.kernels.cuda.warpgroups import WarpgroupConfig
from soroq.kernels.triton import config
from soroq.kernels.triton.config import CUDA_CPP, Config, choose, fits, key, rule, to_json

SHAPES = [(256, 640), (4096, 2560), (2560, 10240), (262208, 2560), (5376, 21504), (1152, 4304)]


@pytest.mark.parametrize("sms", [4, 28, 132])
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_the_rule_stays_within_the_scratch(sms: int, N: int, K: int) -> None:
    for M in (1, 8, 9, 16, 17, 33, 64, 65, 500, 1023):
        chosen = rule(sms, M, N, K)
        assert fits(chosen, M, N, sms)
        assert chosen.splits <= -(-K // 128)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("sms", [4, 28, 132])
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_candidates_of_the_cuda_kernel_can_be_launched(sms: int, N: int, K: int, bits: int) -> None:
    for M in (1, 8, 9, 16):
        found = cuda.candidates(sms, M, N, K, bits)
        assert found[0] == cuda.rule(sms, M, N, K, bits)
        for chosen in found:
            assert 128 % chosen.block_rows == 0
            assert chosen.tokens_8 * 8 >= M
            assert chosen.warps_n * chosen.warps_k <= 8
            assert chosen.splits * chosen.warps_k <= -(-K // 128)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_candidates_for_many_tokens_can_be_launched(N: int, K: int, bits: int) -> None:
    for M in (9, 16, 17, 65, 129, 300, 1024):
        found = warpgroups.candidates(132, M, N, K, bits)
        assert len(found) == len(set(found))
        rule = warpgroups.rule(132, M, N, K, bits)
        assert rule in found
        assert rule.tokens >= M or rule.tokens >= 128  # W is expanded once or for many
        for chosen in found:
            assert chosen.shared_bytes(bits) <= warpgroups.SHARED_BYTES
            assert chosen.splits <= -(-K // 128)
            assert fits(chosen, M, N, 132)
            assert not (bits == 8 and chosen.tokens == 256)


def test_which_kernel_takes_a_product() -> None:
    def chosen(
        M: int, N: int, K: int, cuda_cpp: bool = True, hopper: bool = False, on: str = "nobody's"
    ) -> type:
        return type(choose(on, 132, M, N, K, 128, 4, cuda_cpp=cuda_cpp, hopper=hopper))

    assert chosen(1, 4096, 2560) is CudaConfig
    assert chosen(1, 4096, 2560, cuda_cpp=False) is Config
    assert chosen(16, 4096, 2560) is CudaConfig
    assert chosen(16, 43008, 5376) is Config  # measured: Triton's is faster
    assert chosen(17, 4096, 2560) is Config
    assert chosen(1, 43008, 5376) is CudaConfig
    assert chosen(1, 43008, 5376, on="NVIDIA H200 of nobody's") is Config
    assert chosen(200, 4096, 2560) is Config
    assert chosen(200, 4096, 2560, hopper=True) is WarpgroupConfig
    assert chosen(600, 4096, 2560, hopper=True) is Config  # then W is unpacked
    assert chosen(600, 20480, 2560, hopper=True) is WarpgroupConfig


def test_a_tuned_configuration_is_taken_where_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = Config(8, 64, 4, 2, 5, True)
    huge = Config(8, 64, 20, 2, 5, True)
    text = to_json({key(1, 4096, 2560, 128, 4): tuned, key(1, 262208, 2560, 128, 4): huge})
    (tmp_path / "nvidia-test-1.json").write_text(text)
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    config.known.cache_clear()
    assert choose("NVIDIA Test 1", 132, 5, 4096, 2560, 128, 4) == tuned
    assert choose("NVIDIA Test 1", 132, 9, 4096, 2560, 128, 4) == rule(132, 9, 4096, 2560)
    assert choose("NVIDIA Test 1", 132, 1, 262208, 2560, 128, 4) == rule(132, 1, 262208, 2560)
    faster = CudaConfig(1, 2, 2, 1, 4, 1)
    text = to_json(
        {key(1, 4096, 2560, 128, 4): tuned, key(1, 4096, 2560, 128, 4) + CUDA_CPP: faster}
    )
    (tmp_path / "nvidia-test-1.json").write_text(text)
    config.known.cache_clear()
    assert choose("NVIDIA Test 1", 132, 5, 4096, 2560, 128, 4) == tuned
    assert choose("NVIDIA Test 1", 132, 5, 4096, 2560, 128, 4, cuda_cpp=True) == faster
    assert choose("NVIDIA Test 2", 132, 5, 4096, 2560, 128, 4) == rule(132, 5, 4096, 2560)
    many, any_m = WarpgroupConfig(128, 3, 4, 5, 2), Config(64, 128, 1, 4, 3, False)
    name = key(200, 4096, 2560, 128, 4)
    coarse = key(5000, 4096, 2560, 128, 4)
    (tmp_path / "nvidia-test-1.json").write_text(to_json({name + CUDA_CPP: many, coarse: any_m}))
    config.known.cache_clear()
    for M, hopper, taken in ((200, True, many), (200, False, any_m), (400, True, any_m)):
        assert choose("NVIDIA Test 1", 132, M, 4096, 2560, 128, 4, hopper=hopper) == taken
    config.known.cache_clear()


def test_what_was_tuned_here_comes_before_what_was_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = Config(8, 64, 4, 2, 5, True), Config(8, 64, 2, 2, 5, True)
    monkeypatch.setenv("SOROQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    names = [key(1, n, 2560, 128, 4) for n in (4096, 2048)]
    (tmp_path / config.file_name("G P U")).write_text(to_json(dict.fromkeys(names, theirs)))
    config.add_tuned("G P U", {"another": theirs})
    path = config.add_tuned("G P U", {names[0]: ours})
    assert path.is_relative_to(tmp_path / "cache")
    assert config.known("G P U") == {names[0]: ours, names[1]: theirs, "another": theirs}
    assert choose("G P U", 132, 1, 4096, 2560, 128, 4) == ours
    assert choose("G P U", 132, 1, 2048, 2560, 128, 4) == theirs
    config.known.cache_clear()


def test_a_block_wider_than_the_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="block_n 256"):
        Config(8, 256, 1, 4, 3, True)


def test_what_was_not_compiled_is_refused() -> None:
    with pytest.raises(ValueError, match="not compiled"):
        CudaConfig(4, 1, 4, 1, 4, 1)
    with pytest.raises(ValueError, match="don't divide 128"):
        CudaConfig(1, 1, 4, 3, 2, 1)
    with pytest.raises(ValueError, match="not compiled"):
        WarpgroupConfig(256, 3, 4, 5, 1)
    with pytest.raises(ValueError, match="2 to 8 stages"):
        WarpgroupConfig(128, 3, 9, 5, 1)
    with pytest.raises(ValueError, match="1, 2, 4 or 8 splits"):
        WarpgroupConfig(128, 3, 4, 5, 3)
