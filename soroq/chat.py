"""A model's words: tokenizer, chat template and stop tokens of a folder, without transformers.

    text = ChatText(Path("gemma3-270m-int4"))
    ids = text.encode([{"role": "user", "content": "Салом!"}])
    for piece in text.pieces(tokens): print(piece, end="")

Needs tokenizers, and jinja2 where the model has a chat template.
"""

import importlib.util
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from soroq.core.errors import CheckpointError, KernelError
from soroq.core.memory import release_memory

Messages = Sequence[dict[str, str]]


class ChatText:
    """What a conversation is in tokens, and tokens in words.

    raw: no chat template; the last message's text is gone on with. Raises CheckpointError when a
    file is missing or can't be read, KernelError when a package is.
    """

    def __init__(self, folder: Path, *, raw: bool = False) -> None:
        if importlib.util.find_spec("tokenizers") is None:
            raise KernelError("tokenizers is not installed; pip install tokenizers")
        from tokenizers import Tokenizer

        file = folder / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; copy it from the original model")
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises plain Exceptions
            raise CheckpointError(f"{file}: unreadable tokenizer: {error}") from error
        release_memory()
        self._settings = _read(folder / "tokenizer_config.json")
        self._template = None if raw else _find_template(folder, self._settings)
        self.stop = _end_tokens(folder, self._tokenizer)

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

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield text whenever whole characters are there, and at the end what there is."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(ids=[], skip_special_tokens=True)
        taken, said = [], ""
        for token in tokens:
            taken.append(token)
            piece = stream.step(self._tokenizer, token)
            if piece:
                said += piece
                yield piece
        whole = self._tokenizer.decode(taken, skip_special_tokens=True)
        if whole.startswith(said) and len(whole) > len(said):
            yield whole[len(said) :]

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
    """Return what ends an answer, as the folder's files say, and what ends a turn."""
    files = (_read(folder / name) for name in ("generation_config.json", "config.json"))
    end = next((v["eos_token_id"] for v in files if v.get("eos_token_id") is not None), None)
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
