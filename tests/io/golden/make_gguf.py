"""Write the golden GGUF files with llama.cpp's own quantizer, and hashes of what it reads in them.

    bench/peers/get_llama.sh llama.cpp ~/llama
    SOROQ_LLAMA_CPP=~/llama python tests/io/golden/make_gguf.py tests/io/golden/gguf

soroq writes the random float model that is quantized, nothing more. `hashes.json`: SHA-256 of each
tensor's float32 values as libggml-base's C functions dequantize_row_* give them.
"""

import ctypes
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader

from soroq.bench.peers.llama import Llama
from soroq.export.gguf import write_gguf
from soroq.models.tiny import write_tiny_model

LLAMA_FTYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K_M": 15}  # enum llama_ftype
C_NAMES = {"Q4_K": "q4_K", "Q5_K": "q5_K", "Q6_K": "q6_K"}
# Q4_K_M wants rows of 256 columns, and takes other types for the 32 of o_proj and down_proj. Its
# embedding as Q4_K (ggml_type 12), not Q6_K, keeps the file small; v_proj is Q6_K.
SIZES = {"Q4_K_M": {"hidden_size": 256, "intermediate_size": 32, "num_attention_heads": 1}}
EMBEDDING = {"Q4_K_M": 12}


def main(folder: Path) -> None:
    libraries = Path(os.environ["SOROQ_LLAMA_CPP"])
    llama = Llama("llama.cpp", libraries, threads=1)
    ggml = ctypes.CDLL(str(libraries / "libggml-base.so"))
    folder.mkdir(parents=True, exist_ok=True)
    hashes: dict[str, dict[str, str]] = {}
    for case, ftype in LLAMA_FTYPES.items():
        with tempfile.TemporaryDirectory() as temporary:
            sizes = {"num_hidden_layers": 1, "intermediate_size": 64, "num_key_value_heads": 1}
            base = write_tiny_model(Path(temporary) / "base", **(sizes | SIZES.get(case, {})))
            write_gguf(base, Path(temporary) / "float.gguf")
            out = folder / f"{case.lower()}.gguf"
            llama.quantize(Path(temporary) / "float.gguf", out, ftype, EMBEDDING.get(case))
        hashes[case] = {}
        for tensor in GGUFReader(out).tensors:
            kind = tensor.tensor_type.name
            values = np.empty(tensor.n_elements, np.float32)
            if kind == "F32":
                values[:] = tensor.data.reshape(-1)
            else:
                raw = np.ascontiguousarray(tensor.data)
                function = getattr(ggml, f"dequantize_row_{C_NAMES.get(kind, kind.lower())}")
                function.restype = None
                function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
                function(raw.ctypes.data, values.ctypes.data, values.size)
            hashes[case][tensor.name] = hashlib.sha256(values.tobytes()).hexdigest()
    (folder / "hashes.json").write_text(json.dumps(hashes, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
