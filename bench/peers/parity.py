"""Perplexity of one model by three programs on the same tokens: soroq, lm-eval, llama.cpp.

    python parity.py --text tg=valid.jsonl --text en=valid-en.jsonl --windows 4

Needs soroq, lm-eval and cyllama (llama.cpp for Python) in one environment. llama.cpp runs twice: on
a GGUF of the same weights in float32, and on the demo package's own 4-bit GGUF, whose weights are
the same before their rounding to bfloat16 and whose matrix products round activations to 8 bits.
"""

import argparse
import importlib
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from soroq.bench.peers.graft import writer_like
from soroq.bench.quality.scores import Scorer
from soroq.bench.quality.sets import EvalSet, make_set, read_passages
from soroq.bench.record import append_record
from soroq.io.demo_model import DEMO_MODELS

DEMO = "gemma3-270m"


def by_soroq(scorer: Scorer, windows: EvalSet) -> float:
    """Return the perplexity that `soroq check` reports."""
    return math.exp(float(scorer.base_table(windows).nll[windows.scored.flatten()].mean()))


def by_lm_eval(scorer: Scorer, windows: EvalSet) -> float:
    """Return exp of the harness's mean negative log-likelihood of each window behind its BOS."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(
        pretrained=scorer.model.network,
        tokenizer=scorer.model.tokenizer,
        batch_size=1,
        device="cpu",
    )
    requests = [(("", ""), row[:1].tolist(), row[1:].tolist()) for row in windows.ids]
    found = model._loglikelihood_tokens(requests, disable_tqdm=True)
    return math.exp(-sum(value for value, _ in found) / windows.n_tokens)


def by_llama_cpp(gguf: Path, windows: EvalSet) -> float:
    """Return the perplexity that llama.cpp's logits give."""
    from cyllama.llama import llama_cpp as llama

    class Model(llama.LlamaModel):  # type: ignore[misc]
        """cyllama's own get_logits_ith asks the model for this, which it lacks."""

        @property
        def n_vocab(self) -> int:
            return int(self.get_vocab().n_vocab)

    length = windows.ids.shape[1]
    model = Model(str(gguf), verbose=False)
    params = llama.LlamaContextParams()
    params.n_ctx = params.n_batch = params.n_ubatch = length
    context = llama.LlamaContext(model, params, verbose=False)
    total = 0.0
    for row in windows.ids.tolist():
        context.kv_cache_clear()
        batch = llama.LlamaBatch(n_tokens=length, embd=0, n_seq_max=1)
        for place, token in enumerate(row):
            batch.add(token, place, [0], True)
        context.decode(batch)
        for place, target in enumerate(row[1:]):
            logits = torch.tensor(context.get_logits_ith(place), dtype=torch.float64)
            total -= float(logits[target] - logits.logsumexp(0))
    return math.exp(total / windows.n_tokens)


def write_float_gguf(source: Path, out: Path) -> None:
    """Copy a GGUF with every tensor's value rounded to bfloat16 and stored in float32."""
    from gguf import GGMLQuantizationType, GGUFReader, dequantize

    reader = GGUFReader(source)
    writer = writer_like(reader, out)
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        rounded = values.reshape(*reversed(tensor.shape.tolist())).bfloat16().float()
        writer.add_tensor(tensor.name, rounded.numpy(), raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Parse the command line, run all three on every text, append records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--windows", type=int, default=4)
    options = parser.parse_args()
    scorer = Scorer(DEMO)
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "model.gguf"
        package: Any = importlib.import_module(DEMO_MODELS[DEMO])
        package.assemble(gguf)
        floats = Path(folder) / "float32.gguf"
        write_float_gguf(gguf, floats)
        for name, path in (pair.split("=", 1) for pair in options.text):
            tokenizer = scorer.model.tokenizer
            windows = make_set(name, read_passages(Path(path)), tokenizer, limit=options.windows)
            facts: dict[str, Any] = {
                "text": name,
                "set_sha256": windows.sha256,
                "n_tokens": windows.n_tokens,
                "soroq": by_soroq(scorer, windows),
                "lm_eval": by_lm_eval(scorer, windows),
                "llama_cpp_float32": by_llama_cpp(floats, windows),
                "llama_cpp_q4_k_m": by_llama_cpp(gguf, windows),
            }
            print(facts, flush=True)
            append_record("perplexity-parity", facts)


if __name__ == "__main__":
    main()
