"""inspect, generate and demo."""

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from soroq import console
from soroq.bench.quality.check import CheckRequest
from soroq.commands.check import Outputs, run_check
from soroq.commands.quantize import QuantizeRequest, quantize_to
from soroq.core.errors import CheckpointError


def run_inspect(model: str, json_out: bool) -> None:
    from soroq.inspection import describe

    description = describe(model)
    if json_out:
        print(json.dumps(asdict(description), indent=2, sort_keys=True))
        return
    console.table(
        description.path, ["what", "value"], [[key, value] for key, value in description.facts]
    )
    if description.layers:
        rows = [
            [
                layer["module"],
                layer["scheme"],
                layer["method"],
                f"{layer['bits_per_weight']:.2f}",
                "" if layer["error"] is None else f"{layer['error']:.5f}",
                "" if layer["error_rtn"] is None else f"{layer['error_rtn']:.5f}",
            ]
            for layer in description.layers
        ]
        columns = ["module", "scheme", "method", "bits", "error", "rounding"]
        console.table("layers (error relative to the layer's output)", columns, rows)


def run_generate(
    model: str,
    prompt: str,
    max_tokens: int,
    temperature: float,
    seed: int,
    raw: bool,
    device: str = "cpu",
) -> str:
    """Stream a continuation to stdout and return it.

    On a CPU through the C++ decoder, if it can run the model; otherwise through transformers.
    """
    from soroq import decoder

    place = find_device(device)
    if place.type == "cpu" and not decoder.objection(model):
        return _generate_on_cpu(model, prompt, max_tokens, temperature, seed, raw)
    import torch
    from transformers import TextStreamer

    from soroq.loading import load, load_tokenizer

    tokenizer = load_tokenizer(model)
    if tokenizer.chat_template and not raw:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        ).removeprefix(tokenizer.bos_token or "")
    else:
        text = prompt
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=True).to(place)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    network = load(model, device=place)
    torch.manual_seed(seed)
    sampling = (
        {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    )
    result = network.generate(**ids, max_new_tokens=max_tokens, streamer=streamer, **sampling)
    new = result[0, ids["input_ids"].shape[1] :]
    decoded: str = tokenizer.decode(new, skip_special_tokens=True)
    return decoded


def _generate_on_cpu(
    model: str, prompt: str, max_tokens: int, temperature: float, seed: int, raw: bool
) -> str:
    """The same without transformers, whose import takes more memory than the model."""
    import torch

    from soroq import decoder
    from soroq.chat import ChatText
    from soroq.io.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(checkpoint.path)
        if folder.is_file():  # a GGUF carries its tokenizer inside
            folder = Path(temporary)
            checkpoint.copy_side_files(folder)
        text = ChatText(folder, raw=raw)
    ids = torch.tensor(text.encode([{"role": "user", "content": prompt}]))
    if not len(ids):
        raise CheckpointError("the prompt is empty; give some text")
    running = decoder.load(model, context=max(decoder.CONTEXT, len(ids) + max_tokens))
    tokens = running.generate(
        ids, max_new_tokens=max_tokens, temperature=temperature, seed=seed, stop=text.stop
    )
    said = ""
    for piece in text.pieces(tokens):
        said += piece
        print(piece, end="", flush=True)
    print()
    return said


def find_device(name: str) -> Any:
    """Return a torch device that is here. Raises KernelError for one that isn't."""
    import torch

    from soroq.core.errors import KernelError

    try:
        device = torch.device(name)
    except RuntimeError:
        raise KernelError(f"--device {name!r} is not one; use cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise KernelError(f"--device {name!r} has no kernels here; use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise KernelError(f"--device {name}: there is no such GPU here; use cpu")
    return device


DEMO = "gemma3-270m"
DEMO_PROMPTS = ("Душанбе пойтахти", "Дар мактаб хонандагон", "Тоҷикистон кишварест, ки")


def run_demo(out: Path, scheme: str, samples: int, windows: int) -> None:
    started = time.monotonic()
    say = console.out.print
    unfinished = out.with_name(out.name + ".partial").exists()
    request = QuantizeRequest(DEMO, out, scheme, samples=samples, resume=unfinished)
    if not (out / "soroq.json").is_file():
        say(f"1. soroq quantize {DEMO} --scheme {scheme} --samples {samples} -o {out}")
        quantize_to(request, request.recipe(), out)
    say(f"2. soroq check {DEMO} {out} --windows {windows}")
    run_check(CheckRequest(DEMO, str(out), windows=windows), Outputs())
    say("3. soroq generate")
    for prompt in DEMO_PROMPTS:
        sys.stdout.write(f"> {prompt}")
        run_generate(str(out), prompt, 24, 0.0, 0, True)
    size = sum(f.stat().st_size for f in out.glob("*.safetensors"))
    say(f"model: {out.resolve()} ({size / 1e6:.0f} MB), what was done: {out / 'soroq.json'}")
    say(f"{time.monotonic() - started:.0f} s")
