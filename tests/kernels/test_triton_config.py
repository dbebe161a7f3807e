"""Configurations: the rule's limits, and that tuned ones are read, checked and written back."""

from pathlib import Path

import pytest

from soroq.kernels.triton import config
from soroq.kernels.triton.config import MAX_PROGRAMS_PER_SM, Config, choose, key, rule, to_json

SHAPES = [(256, 640), (4096, 2560), (2560, 10240), (262208, 2560), (5376, 21504), (1152, 4304)]


@pytest.mark.parametrize("sms", [4, 28, 132])
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_the_rule_stays_within_the_scratch(sms: int, N: int, K: int) -> None:
    for M in (1, 8, 9, 16, 17, 33, 64, 65, 500, 1023):
        chosen = rule(sms, M, N, K)
        assert chosen.fits(M, N, sms)
        assert chosen.splits <= -(-K // 128)
        n_partials, n_counters = chosen.scratch(M, N)
        programs = MAX_PROGRAMS_PER_SM * sms
        assert n_partials <= programs * 128 * 64 and n_counters <= programs


def test_a_tuned_configuration_is_taken_where_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = Config(8, 64, 4, 2, 5, True)
    huge = Config(8, 64, 40, 2, 5, True)
    text = to_json({key(1, 4096, 2560, 128, 4): tuned, key(1, 262208, 2560, 128, 4): huge})
    (tmp_path / "nvidia-test-1.json").write_text(text)
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    config.known.cache_clear()
    assert choose("NVIDIA Test 1", 132, 5, 4096, 2560, 128, 4) == tuned
    assert choose("NVIDIA Test 1", 132, 9, 4096, 2560, 128, 4) == rule(132, 9, 4096, 2560)
    assert choose("NVIDIA Test 1", 132, 1, 262208, 2560, 128, 4) == rule(132, 1, 262208, 2560)
    assert choose("NVIDIA Test 2", 132, 5, 4096, 2560, 128, 4) == rule(132, 5, 4096, 2560)
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
