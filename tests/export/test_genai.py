"""onnxruntime-genai's own generator says the same tokens, where it is installed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from soroq.core.errors import KernelError
from soroq.core.scheme import QuantArgs
from soroq.export.ort_library import FILE, find_library
from soroq.export.session import OnnxDecoder

og = pytest.importorskip("onnxruntime_genai")
Make = Callable[..., tuple[Path, Path]]


@pytest.mark.parametrize("model_type", ["gemma3_text", "llama", "mistral", "qwen2", "qwen3"])
def test_generator_says_the_same_greedy_tokens(model_type: str, exported: Make) -> None:
    embed = QuantArgs(bits=8, group_size=32) if model_type == "gemma3_text" else None
    _same_tokens(exported(model_type, embed=embed)[1])


def test_generator_runs_soroqs_kernels(exported: Make) -> None:
    try:
        library = find_library("skip this test")
    except KernelError as error:
        pytest.skip(str(error))
    folder = exported(embed=QuantArgs(bits=8, group_size=32), target="onnx-soroq")[1]
    shutil.copy(library, folder / FILE)
    _same_tokens(folder)


def _same_tokens(folder: Path) -> None:
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
