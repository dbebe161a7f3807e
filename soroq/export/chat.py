"""Chat with an exported folder: tokenizer, chat template and stop tokens, and words as they come.

    chat = Chat(Path("out-onnx"))
    for piece in chat.answer([{"role": "user", "content": "Салом!"}]): print(piece, end="")

Needs onnxruntime, tokenizers and numpy, and jinja2 where the model has a chat template. Neither
torch nor transformers is imported.
"""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from soroq.core.errors import CheckpointError, KernelError
from soroq.export.session import OnnxDecoder

Messages = Sequence[dict[str, str]]


class Chat:
    """A model in an exported folder that answers.

    raw: no chat template; the last message's text is gone on with. Raises CheckpointError when a
    file is missing or can't be read, KernelError when a package is.
    """

    def __init__(self, folder: Path, *, raw: bool = False, threads: int | None = None) -> None:
        for package in ("onnxruntime", "tokenizers"):
            if importlib.util.find_spec(package) is None:
                raise KernelError(f"{package} is not installed; pip install {package}")
        from tokenizers import Tokenizer

        file = folder / "tokenizer.json"
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is no folder; give one that soroq export wrote")
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; copy it from the original model")
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises plain Exceptions
            raise CheckpointError(f"{file}: unreadable tokenizer: {error}") from error
        self._settings = _read(folder / "tokenizer_config.json")
        self._template = None if raw else _find_template(folder, self._settings)
        self._stop = _end_tokens(folder, self._tokenizer)
        self._decoder = OnnxDecoder(folder, threads=threads)

    @property
    def has_template(self) -> bool:
        return self._template is not None

    def encode(self, messages: Messages) -> list[int]:
        """Return the tokens of a conversation, with what the model begins its answer after."""
        text = messages[-1]["content"]
        if self._template is not None:
            text = self._render(messages)
        begin = self._special("bos_token")
        starts = bool(begin) and text.startswith(begin)  # the tokenizer must not add it again
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=not starts).ids
        return ids

    def answer(
        self,
        messages: Messages,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield an answer piece by piece, a piece whenever whole characters are there."""
        from tokenizers.decoders import DecodeStream

        ids = self.encode(messages)
        if not ids:
            raise CheckpointError("the prompt is empty; give some text")
        stream = DecodeStream(ids=[], skip_special_tokens=True)
        self._decoder.rewind()
        for token in self._decoder.generate(
            ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop=self._stop,
        ):
            piece = stream.step(self._tokenizer, token)
            if piece:
                yield piece

    def _special(self, name: str) -> str:
        value = self._settings.get(name) or ""
        return str(value["content"] if isinstance(value, dict) else value)

    def _render(self, messages: Messages) -> str:
        if importlib.util.find_spec("jinja2") is None:
            raise KernelError(
                "the model's chat template needs jinja2: pip install jinja2, or use --raw"
            )
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        try:
            text: str = environment.from_string(self._template or "").render(
                messages=list(messages),
                add_generation_prompt=True,
                bos_token=self._special("bos_token"),
                eos_token=self._special("eos_token"),
            )
        except TemplateError as error:
            raise CheckpointError(f"chat template: {error}; use --raw") from error
        return text


def _find_template(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _end_tokens(folder: Path, tokenizer: Any) -> list[int]:
    end = _read(folder / "generation_config.json").get("eos_token_id")
    found = list(end) if isinstance(end, list) else [] if end is None else [int(end)]
    turn = tokenizer.token_to_id("<end_of_turn>")
    return found if turn is None or turn in found else [*found, turn]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value
