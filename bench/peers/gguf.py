"""Perplexity in llama.cpp of .gguf files of one model, also of what llama.cpp quantizes itself.

    SOROQ_LLAMA_CPP=DIR python -m soroq.bench.peers.gguf BF16.gguf --tokenizer gemma3-270m \
        --text tg=valid.jsonl --peer Q4_0 --file soroq-q4_0=OUT.gguf

All files score the same windows, in the same library; a peer is quantized from the first file by
`llama_model_quantize`, without an importance matrix. One record a text: perplexity and the mean
difference of −log p from the first file, with its standard error over windows.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from soroq.bench.kernels.ggml import directory
from soroq.bench.peers.llama import FTYPES, Llama
from soroq.bench.quality.sets import EvalSet, make_set, read_passages
from soroq.bench.record import append_record


def window_nll(llama: Llama, path: Path, windows: EvalSet) -> torch.Tensor:
    """Return −log p of each scored token, float32 (windows, scored)."""
    n, length = windows.ids.shape
    found = []
    with llama.open(path, window=length) as model:
        for row in range(n):
            model.clear()
            logits = torch.from_numpy(model.evaluate(windows.ids[row].tolist(), every=True))
            each = torch.nn.functional.cross_entropy(
                logits[:-1], windows.ids[row, 1:], reduction="none"
            )
            found.append(each[windows.scored[row]])
    return torch.stack(found)


def main() -> None:
    """Quantize the peers, score everything, append the records."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--text", action="append", required=True, help="name=file")
    parser.add_argument("--peer", action="append", default=[], choices=sorted(FTYPES))
    parser.add_argument("--file", action="append", default=[], help="name=file")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    folder = directory("llama.cpp")
    if folder is None:
        parser.error("no llama.cpp: bench/peers/get_llama.sh llama.cpp DIR; SOROQ_LLAMA_CPP=DIR")
    from transformers import AutoTokenizer

    from soroq.io.checkpoint import open_checkpoint

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(open_checkpoint(args.tokenizer).path)
    llama = Llama("llama.cpp", folder, args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        files = {"base": args.base}
        for name in args.peer:
            files[f"llama-quantize-{name.lower()}"] = Path(temporary) / f"{name}.gguf"
            llama.quantize(args.base, Path(temporary) / f"{name}.gguf", FTYPES[name], None)
        files |= {name: Path(path) for name, _, path in (f.partition("=") for f in args.file)}
        for text, _, path in (given.partition("=") for given in args.text):
            passages = read_passages(Path(path))
            windows = make_set(text, passages, tokenizer, seq_len=args.seq_len, limit=args.windows)
            base = window_nll(llama, files["base"], windows)
            for name, file in files.items():
                nll = base if name == "base" else window_nll(llama, file, windows)
                delta = (nll - base).mean(1)
                values = {
                    "text": text,
                    "text_sha256": windows.sha256,
                    "model": name,
                    "file_bytes": file.stat().st_size,
                    "n_windows": len(nll),
                    "n_tokens": nll.numel(),
                    "perplexity": float(nll.double().mean().exp()),
                    "delta_nll": float(delta.mean()),
                    "delta_nll_stderr": float(delta.std() / len(delta) ** 0.5),
                }
                append_record("gguf_perplexity", values)
                print(" ".join(f"{k}={v}" for k, v in values.items() if k != "text_sha256"))


if __name__ == "__main__":
    main()
