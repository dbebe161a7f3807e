"""onnxruntime-genai's own generator says the same tokens, where it is installed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from soroq.core.scheme import QuantArgs
from soroq.export.session import OnnxDecoder

og = pytest.importorskip("onnxruntime_genai")
Make = Callable[..., tuple[Path, Path]]


@pytest.mark.parametrize("model_type", ["gemma3_text", "llama", "mistral", "qwen2", "qwen3"])
def test_generator_says_the_same_greedy_tokens(model_type: str, exported: Make) -> None:
    embed = QuantArgs(bits=8, group_size=32) if model_type == "gemma3_text" else None
    folder = exported(model_type, embed=embed)[1]
    ids = torch.randint(4, 260, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    want = list(OnnxDecoder(folder).generate(ids, max_new_tokens=30, stop=[1]))
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + 30, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids)
    said: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        said.append(int(generator.get_next_tokens()[0]))
    assert [token for token in said if token != 1] == want
