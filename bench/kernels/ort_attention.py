"""CausalAttention against ONNX Runtime's GroupQueryAttention in one exported model, alternating.

    SOROQ_ORT_LIBRARY=…/libsoroq_ort.so python -m soroq.bench.kernels.ort_attention out-soroq

Both graphs share one data file; for each number of threads the two take turns in one process, and
medians and their ratio are printed: 512 tokens at once, and one token behind 511. The team of
soroq's operators is one for the process, so 1 and 2 threads are measured one after the other.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from soroq.bench.record import append_records
from soroq.export.graph import MICROSOFT, SOROQ
from soroq.export.ort_library import find_library
from soroq.export.session import FOLDER, LAST

TOKENS = 512
WARM_UP = 2
STOCK, OWN = "GroupQueryAttention", "CausalAttention"


def with_attention(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """Return the model with all its attention nodes of one kind."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for node in changed.graph.node:
        if node.op_type not in (STOCK, OWN) or node.op_type == kind:
            continue
        node.op_type, node.domain = kind, SOROQ if kind == OWN else MICROSOFT
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        window = given.pop("local_window_size", 0)
        given.pop("do_rotary", None)
        given["local_window_size"] = max(window, 0) if kind == OWN else (window or -1)
        if kind == STOCK:
            given["do_rotary"] = 0
        del node.attribute[:]
        node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in given.items())
    return changed


def open_kinds(folder: Path, room: Path, threads: int) -> dict[str, Any]:
    """Return a session of each kind, over one data file hard-linked into `room`."""
    model = onnx.load(folder / FOLDER / LAST, load_external_data=False)
    for file in (folder / FOLDER).glob("*_data*"):
        if not (room / file.name).exists():
            os.link(file, room / file.name)
    sessions = {}
    for kind in (STOCK, OWN):
        path = room / f"{kind}.onnx"
        path.write_bytes(with_attention(model, kind).SerializeToString())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("soroq.num_threads", str(threads))
        options.register_custom_ops_library(str(find_library("it is what is measured")))
        sessions[kind] = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    return sessions


def feeds_of(session: Any, n: int, before: int) -> dict[str, Any]:
    """Return n random tokens behind a random cache of `before`."""
    random = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        "input_ids": random.integers(5, 200_000, (1, n)),
        "attention_mask": np.ones((1, before + n), np.int64),
    }
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            shape = (1, value.shape[1], before, value.shape[3])
            feeds[value.name] = random.standard_normal(shape).astype(np.float32)
    return feeds


def measure(
    sessions: dict[str, Any], n: int, before: int, rounds: int
) -> tuple[dict[str, list[float]], float]:
    """Return seconds of each round, the kinds taking turns, and how far their logits differ."""
    feeds = feeds_of(sessions[STOCK], n, before)
    results = [session.run(["logits"], feeds)[0] for session in sessions.values()]
    apart = float(np.linalg.norm(results[0] - results[1]) / np.linalg.norm(results[0]))
    times: dict[str, list[float]] = {kind: [] for kind in sessions}
    for index in range(rounds + WARM_UP):
        for kind, session in sessions.items():
            start = time.perf_counter()
            session.run(None, feeds)
            if index >= WARM_UP:
                times[kind].append(time.perf_counter() - start)
    return times, apart


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="of soroq export --target onnx-soroq")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--record", action="store_true", help="append to bench/records")
    args = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.folder.resolve().parent) as room:
        for threads in args.threads:
            sessions = open_kinds(args.folder, Path(room), threads)
            for n, before, rounds in ((TOKENS, 0, args.rounds), (1, TOKENS - 1, args.rounds * 3)):
                print(f"threads {threads}, {n} tokens behind {before}:")
                times, apart = measure(sessions, n, before, rounds)
                stock, own = (statistics.median(times[kind]) for kind in (STOCK, OWN))
                ms = {kind: sorted(1e3 * t for t in values) for kind, values in times.items()}
                found.append(
                    {"cores": threads, "tokens": n, "before": before, "ms": ms}
                    | {"ratio of medians": stock / own, "logits apart": apart}
                )
                print(
                    f"  {STOCK} {stock * 1e3:.1f} ms, {OWN} {own * 1e3:.1f} ms, "
                    f"ratio of medians {stock / own:.3f}; logits {apart:.1e} of their norm apart"
                )
    if args.record:
        folder = {"model": args.folder.name, "onnxruntime": onnxruntime.__version__}
        print(f"recorded in {append_records('onnx-attention', [folder | one for one in found])}")


if __name__ == "__main__":
    main()
