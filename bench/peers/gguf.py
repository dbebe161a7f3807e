"""Perplexity in llama.cpp of soroq's .gguf files beside llama.cpp's own, of one model.

    SOROQ_LLAMA_CPP=DIR python -m soroq.bench.peers.gguf gemma3-270m --work WORK \
        --text tg=valid.jsonl --text en=valid.jsonl
    python -m soroq.bench.peers.gguf --table

Everything is made from one bfloat16 file in WORK, where it isn't there yet: llama.cpp's importance
matrix over the tokens of soroq's built-in calibration set (`imatrix`), its quantizer's files with
that matrix, and soroq's own, quantized on the same tokens. All score the same windows in the same
library. One record a text and file: size, perplexity, the mean difference of −log p from the
original and, for soroq's files, from llama.cpp's file of the same type, with standard errors over
windows (paired).

The type "Q4_K alone" is what of llama.cpp's Q4_K_S is in that type, in an otherwise unquantized
file (`graft`), beside the same matrices of soroq's in it.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from soroq.bench.kernels.ggml import directory
from soroq.bench.peers.graft import graft
from soroq.bench.peers.imatrix import measure
from soroq.bench.peers.llama import FTYPES, Llama
from soroq.bench.quality.sets import EvalSet, make_set, read_passages
from soroq.bench.record import append_record, read_records
from soroq.calib.dataset import CalibrationSet
from soroq.calib.sample import build_calibration
from soroq.calib.sources import builtin_documents
from soroq.core.errors import CalibrationError
from soroq.io.checkpoint import open_checkpoint
from soroq.io.gguf import translate
from soroq.models.registry import find_layout

BENCH = "gguf_peers"
TYPES = ("Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M", "Q4_K alone")
ALONE, FROM = "Q4_K alone", "Q4_K_S"  # a type of ours and whose matrices it compares
OURS = {"Q4_0": ("--sym",), "Q4_1": ("--asym",)}  # what makes soroq's file of that type
MIX = {"tg": 0.7, "en": 0.3}  # of languages in the calibration, soroq quantize's default
CALIBRATION_LENGTH = 512  # soroq quantize's and llama-imatrix's own default


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


def calibration_of(model: str, samples: int) -> CalibrationSet:
    """Return the tokens that `soroq quantize MODEL --samples …` looks at."""
    from soroq.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    return build_calibration(
        {language: list(builtin_documents(language, "calib")) for language in MIX},
        lambda document: tokenizer.encode(document.plain, add_special_tokens=False),
        bos=tokenizer.bos_token_id,
        n_samples=samples,
        seq_len=CALIBRATION_LENGTH,
        mix=MIX,
        seed=0,
        name="builtin",
        tokenizer=type(tokenizer).__name__,
    )


def importance(
    llama: Llama, base: Path, calibration: CalibrationSet, kept: Path
) -> dict[str, torch.Tensor]:
    """Return the importance matrix of `base` over the calibration tokens, kept in a file."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    if kept.is_file():
        with safe_open(kept, framework="pt") as file:
            if (file.metadata() or {}).get("calibration") == calibration.sha256:
                return load_file(kept)
    matrix = measure(llama, base, calibration.ids)
    save_file(matrix, kept, {"calibration": calibration.sha256})
    return matrix


def soroq_file(model: str, scheme: str, kind: str, calibration: CalibrationSet, work: Path) -> Path:
    """Quantize and convert, where that isn't done yet; return the .gguf file.

    Raises CalibrationError when the quantized model in `work` was made from other tokens.
    """
    made, out = work / f"soroq-{scheme}-{kind}", work / f"soroq-{scheme}-{kind}.gguf"
    if out.is_file():
        return out
    if not (made / "soroq.json").is_file():
        numbers = ("--scheme", scheme, "--group-size", "32", *OURS[kind], "--embed", "int8")
        windows = ("--samples", str(len(calibration.ids)))
        _soroq("quantize", model, *numbers, *windows, "--resume", "-o", str(made))
    seen = json.loads((made / "soroq.json").read_text(encoding="utf-8"))["calibration"]["sha256"]
    if seen != calibration.sha256:
        raise CalibrationError(f"{made} was calibrated on other tokens; give another --work folder")
    _soroq("convert", str(made), str(out), "--format", "gguf")
    return out


def k_alone(
    llama_file: Path, base: Path, model: str, scheme: str, calibration: CalibrationSet, work: Path
) -> tuple[Path, Path]:
    """Return llama.cpp's and soroq's file with the same matrices in Q4_K and nothing else."""
    theirs, made = work / f"llama-{ALONE}.gguf", work / f"soroq-{scheme}-{ALONE}"
    ours = made.with_name(f"{made.name}.gguf")
    names = graft(base, llama_file, "Q4_K", theirs)
    if not ours.is_file():
        checkpoint = open_checkpoint(model)
        layout = find_layout(checkpoint.config, set(checkpoint.names()))
        wanted = {translate(name, "gemma3", llama_file).removesuffix(".weight") for name in names}
        linears = {
            f"{layout.block(index)}.{path}"
            for index in range(layout.n_blocks)
            for path in layout.architecture.linears
        }
        skips = [word for name in sorted(linears - wanted) for word in ("--skip", name)]
        numbers = ("--scheme", scheme, "--group-size", "32", "--asym", *skips)
        windows = ("--samples", str(len(calibration.ids)))
        if not (made / "soroq.json").is_file():
            _soroq("quantize", model, *numbers, *windows, "--resume", "-o", str(made))
        _soroq("convert", str(made), str(ours), "--format", "gguf", "--k-quants")
    return theirs, ours


def _soroq(*arguments: str) -> None:
    run = "from soroq.cli import main; main()"
    subprocess.run([sys.executable, "-c", run, *arguments], check=True)


def make_files(
    llama: Llama,
    model: str,
    types: Sequence[str],
    schemes: Sequence[str],
    samples: int,
    work: Path,
) -> tuple[dict[tuple[str, str], Path], CalibrationSet]:
    """Return the files by (who made it, type); the original is ("original", "BF16")."""
    work.mkdir(parents=True, exist_ok=True)
    base = work / "original.gguf"
    if not base.is_file():
        _soroq("convert", model, str(base), "--format", "gguf")
    files = {("original", "BF16"): base}
    calibration = calibration_of(model, samples)
    matrix = importance(llama, base, calibration, work / "imatrix.safetensors")
    for kind in [t for t in types if t != ALONE]:
        out = work / f"llama-{kind}.gguf"
        if not out.is_file():
            building = out.with_name(f"{out.name}.tmp")
            llama.quantize(base, building, FTYPES[kind], None, matrix=matrix)
            building.replace(out)
        files["llama.cpp with imatrix", kind] = out
        if kind in OURS:
            for scheme in schemes:
                files[f"soroq {scheme}", kind] = soroq_file(model, scheme, kind, calibration, work)
    if ALONE in types:
        whole = files["llama.cpp with imatrix", FROM]
        for scheme in schemes:
            theirs, ours = k_alone(whole, base, model, scheme, calibration, work)
            files["llama.cpp with imatrix", ALONE] = theirs
            files[f"soroq {scheme}", ALONE] = ours
    return files, calibration


def score(
    llama: Llama, files: dict[tuple[str, str], Path], windows: EvalSet, facts: dict[str, Any]
) -> None:
    """Score all files on one text and append the records."""
    found: dict[tuple[str, str], torch.Tensor] = {}
    base = window_nll(llama, files["original", "BF16"], windows)
    for (maker, kind), path in files.items():
        nll = base if maker == "original" else window_nll(llama, path, windows)
        found[maker, kind] = nll
        values = {
            **facts,
            "text": windows.name,
            "text_sha256": windows.sha256,
            "maker": maker,
            "type": kind,
            "file_bytes": path.stat().st_size,
            "n_windows": len(nll),
            "n_tokens": nll.numel(),
            "perplexity": float(nll.double().mean().exp()),
            **_difference("from_original", nll, base),
        }
        if maker.startswith("soroq"):
            values |= _difference("from_llama", nll, found["llama.cpp with imatrix", kind])
        append_record(BENCH, values)
        print(windows.name, maker, kind, values["perplexity"], flush=True)


def _difference(name: str, nll: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    each = (nll - other).double().mean(1)
    return {
        f"delta_nll_{name}": float(each.mean()),
        f"delta_nll_{name}_stderr": float(each.std() / len(each) ** 0.5),
    }


def table() -> str:
    """Return the last records as Markdown: a row a model and file, a column a text."""
    rows: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for record in read_records(BENCH):
        key = (record["model"], record["type"], record["maker"])
        rows.setdefault(key, {})[record["text"]] = record
    texts = sorted({text for row in rows.values() for text in row}, reverse=True)
    titles = "".join(f" {t} perplexity | {t} ΔNLL | {t} paired with llama.cpp |" for t in texts)
    lines = [f"| original | type | by | bytes |{titles}", "| --- " * (4 + 3 * len(texts)) + "|"]
    for (model, kind, maker), row in rows.items():
        cells = ""
        for text in texts:
            r = row.get(text)
            if r is None:  # a run that is not over
                cells += " – | – | – |"
                continue
            cells += f" {r['perplexity']:.2f} | {_cell(r, 'from_original')} |"
            cells += f" {_cell(r, 'from_llama')} |"
        size = next(iter(row.values()))["file_bytes"]
        lines.append(f"| {model} | {kind} | {maker} | {size:,} |{cells}")
    return "\n".join(lines)


def _cell(record: dict[str, Any], name: str) -> str:
    if f"delta_nll_{name}" not in record or record["maker"] == "original":
        return "–"
    return f"{record[f'delta_nll_{name}']:+.3f} ± {record[f'delta_nll_{name}_stderr']:.3f}"


def main() -> None:
    """Make the files, score everything, append the records; or print them."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("model", nargs="?", help="a checkpoint that isn't quantized")
    parser.add_argument("--work", type=Path, help="where the files are made and found again")
    parser.add_argument("--text", action="append", default=[], help="name=file")
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--schemes", default="int4-gptq", help="of soroq, for Q4_0 and Q4_1")
    parser.add_argument("--samples", type=int, default=128, help="windows of calibration")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the last records and stop")
    args = parser.parse_args()
    if args.table:
        print(table())
        return
    folder = directory("llama.cpp")
    if folder is None:
        parser.error("no llama.cpp: bench/peers/get_llama.sh llama.cpp DIR; SOROQ_LLAMA_CPP=DIR")
    if not (args.model and args.work and args.text):
        parser.error("give a model, --work FOLDER and --text name=file")
    from soroq.loading import load_tokenizer

    if ALONE in args.types.split(",") and FROM not in args.types.split(","):
        parser.error(f"{ALONE!r} is taken out of {FROM}; name both in --types")
    torch.set_num_threads(args.threads)
    llama = Llama("llama.cpp", folder, args.threads)
    types, schemes = args.types.split(","), args.schemes.split(",")
    files, calibration = make_files(llama, args.model, types, schemes, args.samples, args.work)
    facts = {
        "model": Path(args.model).name,
        "model_sha256": open_checkpoint(args.model).sha256(),
        "calibration_sha256": calibration.sha256,
        "calibration_tokens": calibration.ids.numel(),
    }
    tokenizer = load_tokenizer(args.model)
    for text, _, path in (given.partition("=") for given in args.text):
        passages = read_passages(Path(path))
        windows = make_set(text, passages, tokenizer, seq_len=args.seq_len, limit=args.windows)
        score(llama, files, windows, facts)


if __name__ == "__main__":
    main()
