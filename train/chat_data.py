"""Conversations as tokens to learn from: through the chat template, with the answers marked.

    form = ChatForm(tokenizer)
    example = form.encode(conversation)       # tokens, and which of them are an answer's

Where answers lie is found by rendering the conversation's beginnings: the text up to an answer is
the template's own prompt for it, so what is learned is what the model will have to write, the mark
that ends its turn included. Works with any template whose beginnings don't change as a conversation
goes on; another one is refused.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from soroq.calib.language import guess_language
from soroq.core.errors import CalibrationError
from soroq.io.writer import sha256_file
from soroq.train.chat_rows import Conversation, read_conversations
from soroq.train.config import Config
from soroq.train.data import Data
from soroq.train.packing import Example, Packer, Stream

# The turns of Gemma 3 as its model card shows them, for tokenizers that came without a template.
GEMMA_TEMPLATE = (
    "{{ bos_token }}"
    "{% set system = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}"
    "{% set spoken = messages[1:] if messages[0]['role'] == 'system' else messages %}"
    "{% for message in spoken %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' }}"
    "{{ (system if loop.first else '') + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA_MARKS = ("<start_of_turn>", "<end_of_turn>")


class ChatForm:
    """A tokenizer and the chat template that goes with it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.template: str = tokenizer.chat_template or ""
        self.own = bool(self.template)
        if not self.own:
            vocabulary = tokenizer.get_vocab()
            if any(mark not in vocabulary for mark in GEMMA_MARKS):
                raise CalibrationError(
                    "the tokenizer has no chat template; put a chat_template.jinja beside it"
                )
            self.template = GEMMA_TEMPLATE

    def render(self, messages: Sequence[dict[str, str]], *, prompt: bool = False) -> str:
        """Return a conversation as text; prompt: with the beginning of an answer behind it."""
        text: str = self._tokenizer.apply_chat_template(
            list(messages),
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=prompt,
        )
        return text

    def encode(self, conversation: Conversation) -> Example:
        """Return tokens and which are learned. Raises CalibrationError where it can't be told."""
        messages = conversation.messages
        try:
            text = self.render(messages)
            spans = [
                (self.render(messages[:i], prompt=True), self.render(messages[: i + 1]))
                for i, message in enumerate(messages)
                if message["role"] == "assistant"
            ]
        except Exception as error:  # jinja's errors, and what a template raises itself
            raise CalibrationError(
                f"{conversation.where}: the chat template says {error}"
            ) from error
        for before, behind in spans:
            if not (text.startswith(behind) and behind.startswith(before)):
                raise CalibrationError(
                    f"{conversation.where}: the chat template writes earlier turns in another way "
                    "when more follow, so answers can't be found; give it one turn each"
                )
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        learned = torch.zeros(len(encoded["input_ids"]), dtype=torch.bool)
        offsets = torch.tensor(encoded["offset_mapping"]).view(-1, 2)
        for before, behind in spans:
            start, end = len(before), len(behind.rstrip())
            learned |= (offsets[:, 0] >= start) & (offsets[:, 0] < end)
        return Example(torch.tensor(encoded["input_ids"], dtype=torch.int32), learned)

    def end_of(self, example: Example) -> int | None:
        """Return the token that ends an answer, None where the template has no mark for it."""
        last = int(example.tokens[example.learned][-1])
        marks = set(self._tokenizer.added_tokens_decoder) | set(self._tokenizer.all_special_ids)
        return last if last in marks else None

    def side_files(self, directory: Path, end: int | None) -> dict[str, bytes]:
        """Return the files that make the trained model chat: its template, and where it stops.

        end: the token that ends an answer, if there is one.
        """
        path = directory / "generation_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        given = settings.get("eos_token_id", self._tokenizer.eos_token_id)
        stops = given if isinstance(given, list) else [given]
        settings["eos_token_id"] = list(dict.fromkeys([*stops, *([] if end is None else [end])]))
        files = {"generation_config.json": json.dumps(settings, indent=2).encode()}
        if not self.own:
            files["chat_template.jinja"] = self.template.encode()
        return files


def read_chat_data(config: Config, form: ChatForm, pad: int) -> tuple[Data, int | None]:
    """Return the data of `soroq train sft`, and the token that ends an answer.

    Languages are told by the answers. Equal conversations count once; which are held out for
    validation depends on their text alone. Raises CalibrationError.
    """
    files = [Path(name) for name in config.data.files]
    if not files:
        raise CalibrationError("data.files is missing: files of conversations")
    seq_len, seed = config.data.seq_len, config.train.seed
    found: dict[str, tuple[Conversation, Example]] = {}
    counts = dict.fromkeys(("conversations", "duplicates", "cut", "no_answer_within_seq_len"), 0)
    for file in files:
        for conversation in read_conversations(file):
            counts["conversations"] += 1
            key = hashlib.sha256(json.dumps(conversation.turns).encode()).hexdigest()
            if key in found:
                counts["duplicates"] += 1
                continue
            example = form.encode(conversation)
            counts["cut"] += len(example.tokens) > seq_len
            if not example.learned[1:seq_len].any():
                counts["no_answer_within_seq_len"] += 1
                continue
            found[key] = (conversation, example)
    if len(found) < 2:
        raise CalibrationError(
            f"{len(found)} conversations are left of {counts['conversations']} ({counts}); at "
            "least one to learn from and one to validate on are needed"
        )
    keys = sorted(found)
    held_out = set(keys[: min(len(keys) - 1, max(1, round(config.data.valid_share * len(keys))))])
    groups: dict[str, dict[str, list[Example]]] = {"train": {}, "valid": {}}
    for key, (conversation, example) in found.items():
        language = guess_language(conversation.answers).language
        split = "valid" if key in held_out else "train"
        groups[split].setdefault(language, []).append(example)
    shares = dict(config.data.shares)
    for language in shares:
        if language not in groups["train"]:
            raise CalibrationError(
                f"no answers in {language!r} to train on; there are "
                f"{', '.join(sorted(groups['train']))}"
            )
    if not shares:  # as they come
        shares = {
            language: float(sum(min(len(e.tokens), seq_len) for e in examples))
            for language, examples in groups["train"].items()
        }
    streams = {n: Stream(groups["train"][n], seq_len, seed, "whole", pad) for n in shares}
    validation = {}
    for language, examples in groups["valid"].items():
        stream = Stream(examples, seq_len, seed, "whole", pad)
        tokens = sum(min(len(example.tokens), seq_len) for example in examples)
        n = min(max(1, tokens // seq_len), config.run.validation)
        validation[language] = [stream.next() for _ in range(n)]
    record = {
        "files": {file.name: sha256_file(file) for file in files},
        "counts": counts | {"held_out": len(held_out)},
        "languages": {n: len(groups["train"][n]) for n in sorted(groups["train"])},
        "chat_template_sha256": hashlib.sha256(form.template.encode()).hexdigest(),
    }
    end = form.end_of(found[keys[0]][1])
    return Data(Packer(streams, shares), validation, record), end
