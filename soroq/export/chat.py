"""Chat with an exported folder, words as they come.

    chat = Chat(Path("out-onnx"))
    for piece in chat.answer([{"role": "user", "content": "Салом!"}]): print(piece, end="")

Needs onnxruntime, tokenizers and numpy, and jinja2 where the model has a chat template. Neither
torch nor transformers is imported.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from soroq.chat import ChatText, Messages
from soroq.core.errors import CheckpointError, KernelError
from soroq.export.session import OnnxDecoder


class Chat:
    """A model in an exported folder that answers.

    raw: no chat template; the last message's text is gone on with. Raises CheckpointError when a
    file is missing or can't be read, KernelError when a package is.
    """

    def __init__(self, folder: Path, *, raw: bool = False, threads: int | None = None) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise KernelError("onnxruntime is not installed; pip install onnxruntime")
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is no folder; give one that soroq export wrote")
        self.text = ChatText(folder, raw=raw)
        self._decoder = OnnxDecoder(folder, threads=threads)

    def answer(
        self,
        messages: Messages,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield an answer piece by piece, a piece whenever whole characters are there."""
        ids = self.text.encode(messages)
        if not ids:
            raise CheckpointError("the prompt is empty; give some text")
        self._decoder.rewind()
        tokens = self._decoder.generate(
            ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop=self.text.stop,
        )
        yield from self.text.pieces(tokens)
