"""Let an exported folder go on with a text, with onnxruntime, tokenizers and numpy alone.

    pip install onnxruntime tokenizers
    python onnx_chat.py out-onnx "Душанбе пойтахти" 40

Copy it and change it: this is everything that a program needs of a folder of `soroq export`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

folder, prompt, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
settings = json.loads((folder / "generation_config.json").read_text())
end = settings.get("eos_token_id")
stop = end if isinstance(end, list) else [end]

ids = tokenizer.encode(prompt).ids
room = len(ids) + count  # tokens that the caches must hold
session = onnxruntime.InferenceSession(str(folder / "onnx" / "model_last.onnx"))
binding = session.io_binding()

# Keys and values: one buffer is input and output, and the model writes new tokens in place.
for node in session.get_inputs():
    if node.name.startswith("past_key_values"):
        kind = np.float16 if node.type == "tensor(float16)" else np.float32
        empty = np.zeros((1, node.shape[1], room, node.shape[3]), kind)
        cache = onnxruntime.OrtValue.ortvalue_from_numpy(empty)
        binding.bind_ortvalue_input(node.name, cache)
        binding.bind_ortvalue_output(node.name.replace("past_key_values", "present"), cache)

stream = DecodeStream(ids=[], skip_special_tokens=True)
step, length = ids, 0
print(prompt, end="", flush=True)
for _ in range(count):
    length += len(step)
    binding.bind_cpu_input("input_ids", np.array([step], np.int64))
    binding.bind_cpu_input("attention_mask", np.ones((1, length), np.int64))
    binding.bind_output("logits")
    session.run_with_iobinding(binding)
    logits = binding.get_outputs()[-1].numpy()  # (1, 1, vocabulary)
    token = int(logits.argmax())
    if token in stop:
        break
    print(stream.step(tokenizer, token) or "", end="", flush=True)
    step = [token]
print()
