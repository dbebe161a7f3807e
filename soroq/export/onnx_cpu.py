"""onnx-cpu: a folder that ONNX Runtime alone runs, on any processor.

    soroq export gemma3-270m-int4 --target onnx-cpu -o out-onnx

    onnx/model.onnx        logits of all tokens: transformers.js, optimum, soroq check
    onnx/model_last.onnx   logits of each row's last token: onnxruntime-genai, soroq run
    onnx/model.onnx_data   the weights of both, once (more files _1, _2 … beyond 2 GB)
    config.json, generation_config.json, genai_config.json, tokenizer, licences, soroq.json

The folder is written under another name and gets its own when it is whole.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from onnx import NodeProto, TensorProto, helper

import soroq
from soroq.core.errors import SchemeError
from soroq.export.decoder_graph import DecoderGraph
from soroq.export.graph import IR_VERSION, MICROSOFT_OPSET, OPSET, GraphBuilder
from soroq.export.layouts import write_layouts
from soroq.export.linears import LinearWriter
from soroq.export.ort_library import FILE, NAME
from soroq.export.session import EVERY, FOLDER, LAST
from soroq.export.target import (
    COMPUTE,
    MANIFEST,
    Check,
    ExportManifest,
    ExportRequest,
    Say,
)
from soroq.export.tensors import FILE_LIMIT, ONNX_TYPES, ExternalData
from soroq.io.checkpoint import Checkpoint, open_stored
from soroq.io.safetensors_file import fsync_directory
from soroq.io.writer import (
    atomic_write,
    make_folder,
    require_disk_space,
    require_empty_dir,
    sha256_file,
)
from soroq.models.architecture import DecoderLayout
from soroq.models.registry import find_layout

TARGET = "onnx-cpu"
# precision → MatMulNBits' accuracy_level, and the largest block, in which activations share a scale
LEVELS = {"int8": (4, 256), "int8-fine": (4, 32), "exact": (1, 256)}
SPACE_FACTOR = 1.1  # the folder holds what the checkpoint does, and a tokenizer
MakeLinears = Callable[[GraphBuilder, Checkpoint], LinearWriter]
MIN_ONNXRUNTIME = "1.23"  # the first that opens every graph written here


def export(
    request: ExportRequest, say: Say = print, check: Check | None = None, limit: int = FILE_LIMIT
) -> ExportManifest:
    """Write `request.out` and return its manifest, with what `check` said of the folder.

    limit: bytes of a data file. Raises SchemeError for a compute type that isn't there on CPUs,
    CheckpointError for a model that has no graph, OutputError for a place that can't be written.
    """
    _refuse_choices(request)
    level, largest = LEVELS[request.precision]

    def linears(graph: GraphBuilder, checkpoint: Checkpoint) -> LinearWriter:
        return LinearWriter(graph, checkpoint, accuracy_level=level, largest_block=largest)

    return export_folder(request, TARGET, linears, {}, say, check, limit)


def export_folder(
    request: ExportRequest,
    target: str,
    linears: MakeLinears,
    requires: dict[str, str],
    say: Say,
    check: Check | None,
    limit: int,
) -> ExportManifest:
    """Do as `export` for any target that differs in its linears only.

    requires: what the folder needs besides ONNX Runtime.
    """
    require_empty_dir(request.out)
    checkpoint = open_stored(request.source)
    layout = find_layout(checkpoint.config, set(checkpoint.names()))
    require_disk_space(request.out, int(checkpoint.total_bytes * SPACE_FACTOR))
    with _partial_folder(request.out) as folder:
        notes = write_graphs(folder / FOLDER, checkpoint, layout, request, linears, limit)
        n_data = len(list((folder / FOLDER).glob(f"{EVERY}_data*")))
        library = FILE if NAME in requires else ""
        text_config, head_dim = layout.text_config, layout.head_dim
        write_layouts(folder, checkpoint, text_config, head_dim, n_data, library)
        for note in notes:
            say(note)
        say(f"opset {OPSET}, com.microsoft {MICROSOFT_OPSET}, IR version {IR_VERSION}")
        manifest = ExportManifest(
            target=target,
            soroq_version=soroq.__version__,
            source=Path(request.source).name,
            source_sha256=checkpoint.sha256(),
            compute=request.compute,
            precision=request.precision,
            opset=OPSET,
            ir_version=IR_VERSION,
            requires={"onnxruntime": MIN_ONNXRUNTIME, **requires},
            versions=_versions(),
            notes=notes,
            files=_describe_files(folder),
        )
        if check is not None:  # it opens the folder as anyone does, who reads what it needs
            atomic_write(folder / MANIFEST, manifest.to_json().encode())
            manifest = replace(manifest, parity=check(folder))
        atomic_write(folder / MANIFEST, manifest.to_json().encode())
    return manifest


def write_graphs(
    folder: Path,
    checkpoint: Checkpoint,
    layout: DecoderLayout,
    request: ExportRequest,
    make_linears: MakeLinears,
    limit: int = FILE_LIMIT,
) -> list[str]:
    """Write both graphs and their data into `folder`; return notes on what is not as stored."""
    make_folder(folder)
    compute = getattr(torch, request.compute)
    data = ExternalData(folder, f"{EVERY}_data", limit)
    graph = GraphBuilder(data, compute)
    linears = make_linears(graph, checkpoint)
    decoder = DecoderGraph(graph, checkpoint, layout, linears)
    try:
        every, last = decoder.build()
    finally:
        data.close()
    inputs, present = _signature(decoder, ONNX_TYPES[compute])
    for file, logits, rows in ((EVERY, every, "sequence_length"), (LAST, last, 1)):
        nodes = name_output(needed_for([logits], graph.nodes), logits, "logits")
        shape = ["batch_size", rows, decoder.vocabulary]
        output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
        graph.save(folder / file, inputs, [output, *present], nodes)
    if not linears.rounded_anew:
        return []
    n = len(linears.rounded_anew)
    return [
        f"ONNX Runtime has no float8 products on CPUs: {n} float8 weights were rounded to int8 in "
        "groups of 128, and their inputs are not rounded to float8"
    ]


def needed_for(outputs: Sequence[str], nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Return the nodes that some values need, and those that make a cache, in their order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if any(name in wanted or name.startswith("present.") for name in node.output if name):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def name_output(nodes: Sequence[NodeProto], value: str, name: str) -> list[NodeProto]:
    """Return the nodes with a value called otherwise."""
    renamed = []
    for node in nodes:
        if value in node.output:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.output[list(node.output).index(value)] = name
            node = copy
        renamed.append(node)
    return renamed


def _signature(decoder: DecoderGraph, kind: int) -> tuple[list[Any], list[Any]]:
    """Return a graph's inputs, and its outputs but for the logits."""
    make = helper.make_tensor_value_info
    inputs = [
        make("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        make("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
    ]
    present = []
    for index in range(decoder.n_blocks):
        for part in ("key", "value"):
            heads, size = decoder.kv_heads, decoder.head_dim
            past = f"past_key_values.{index}.{part}"
            inputs.append(make(past, kind, ["batch_size", heads, "past_sequence_length", size]))
            present.append(
                make(
                    f"present.{index}.{part}",
                    kind,
                    ["batch_size", heads, "total_sequence_length", size],
                )
            )
    return inputs, present


def _refuse_choices(request: ExportRequest) -> None:
    if request.compute not in COMPUTE:
        raise SchemeError(f"--compute {request.compute!r} is not one of {', '.join(COMPUTE)}")
    if request.compute == "bfloat16":
        raise SchemeError(
            "--compute bfloat16: ONNX Runtime has no attention in bfloat16 on CPUs; use float32"
        )
    if request.precision not in LEVELS:
        raise SchemeError(f"--precision {request.precision!r} is not one of {', '.join(LEVELS)}")


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """Yield `<out>.partial`, which becomes `out` at the end and is deleted when that isn't reached.

    What a killed run left there is deleted first.
    """
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    make_folder(partial)
    try:
        yield partial
        if out.exists():
            out.rmdir()  # empty, or it would have been refused
        os.replace(partial, out)
        fsync_directory(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _versions() -> dict[str, str]:
    import onnx

    return {"onnx": str(onnx.__version__), "torch": str(torch.__version__)}
