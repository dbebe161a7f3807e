"""One kind of tensor of a quantized .gguf in the place of the original's, all else unquantized.

    names = graft(Path("original.gguf"), Path("llama-Q4_K_S.gguf"), "Q4_K", Path("out.gguf"))

llama.cpp's "Q4_K_S" and its like are mixes, and of a model with rows of 640 columns only some are
in blocks of 256 at all. Alone among unquantized ones they can be compared with another quantizer's
blocks of the same type, matrix by matrix of the same size.
"""

from pathlib import Path
from typing import Any


def writer_like(reader: Any, out: Path) -> Any:
    """Return a gguf.GGUFWriter of `out` that holds the metadata of a gguf.GGUFReader."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=element)
    return writer


def graft(original: Path, quantized: Path, kind: str, out: Path) -> list[str]:
    """Write `original` with those matrices of `quantized` that are of ggml type `kind`.

    Returns their names. Raises ValueError when there is none.
    """
    import gguf

    base, other = gguf.GGUFReader(original), gguf.GGUFReader(quantized)
    wanted = {t.name: t for t in other.tensors if t.tensor_type.name == kind}
    if not wanted:
        raise ValueError(f"{quantized} has no {kind}")
    writer = writer_like(base, out)
    chosen = [wanted.get(tensor.name, tensor) for tensor in base.tensors]
    for tensor in chosen:
        writer.add_tensor_info(
            tensor.name,
            tensor.data.shape,
            tensor.data.dtype,
            tensor.data.nbytes,
            raw_dtype=tensor.tensor_type,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in chosen:
        writer.write_tensor_data(tensor.data)
    writer.close()
    return sorted(wanted)
