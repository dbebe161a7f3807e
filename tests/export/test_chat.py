"""soroq run: onnxruntime and tokenizers only, words as they come, clear errors."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from soroq.cli import app
from soroq.core.errors import CheckpointError, KernelError
from soroq.export.chat import Chat
from soroq.export.session import LAST, OnnxDecoder

Make = Callable[..., tuple[Path, Path]]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)
USER = [{"role": "user", "content": "Салом"}]


def test_run_imports_neither_torch_nor_transformers(exported: Make) -> None:
    folder = exported()[1]
    code = f"""
import sys
from soroq.cli import app
try:
    app(["run", {str(folder)!r}, "-p", "Салом", "-n", "5"])
except SystemExit as stop:
    assert not stop.code
heavy = ("torch", "transformers", "onnx", "safetensors", "optimum")
print("LOADED", [name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_answers_stream_what_the_tokens_say(exported: Make) -> None:
    folder = exported()[1]
    chat = Chat(folder)
    assert not chat.text.has_template
    pieces = list(chat.answer(USER, max_new_tokens=12))
    decoder = OnnxDecoder(folder)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode("Салом").ids
    assert ids[0] == 2  # BOS
    tokens = list(decoder.generate(ids, max_new_tokens=12, stop=[1]))
    assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=True)
    assert list(chat.answer(USER, max_new_tokens=12)) == pieces  # it forgot the first answer


def test_sampling_repeats_with_its_seed(exported: Make) -> None:
    chat = Chat(exported()[1])
    texts = [
        "".join(chat.answer(USER, max_new_tokens=20, temperature=5.0, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("place", ["file", "config"])
def test_chat_template_is_applied_with_one_bos(place: str, exported: Make) -> None:
    folder = exported()[1]
    if place == "file":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    else:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    chat = Chat(folder)
    plain = Chat(folder, raw=True)
    text = "<user>Салом\n<model>"
    assert chat.text.encode(USER) == plain.text.encode([{"role": "user", "content": text}])
    assert chat.text.encode(USER).count(2) == 1
    talk = [*USER, {"role": "assistant", "content": "Хуб"}, {"role": "user", "content": "Чӣ?"}]
    assert len(chat.text.encode(talk)) > len(chat.text.encode(USER))


def test_lines_of_stdin_are_a_conversation(exported: Make) -> None:
    folder = exported()[1]
    done = CliRunner().invoke(app, ["run", str(folder), "-n", "3"], input="Салом\n\nЧӣ хел?\n")
    assert done.exit_code == 0, done.output
    assert len(done.output.splitlines()) >= 2


class TestErrors:
    def test_no_tokenizer(self, exported: Make) -> None:
        folder = exported()[1]
        (folder / "tokenizer.json").unlink()
        with pytest.raises(CheckpointError, match=r"tokenizer.json is missing; copy it"):
            Chat(folder)

    def test_damaged_tokenizer(self, exported: Make) -> None:
        folder = exported()[1]
        (folder / "tokenizer.json").write_text("{")
        with pytest.raises(CheckpointError, match="unreadable tokenizer"):
            Chat(folder)

    def test_no_export(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="give one that soroq export wrote"):
            Chat(tmp_path / "nothing")
        with pytest.raises(CheckpointError, match=r"no onnx/model_last.onnx"):
            OnnxDecoder(tmp_path)

    def test_broken_template(self, exported: Make) -> None:
        folder = exported()[1]
        (folder / "chat_template.jinja").write_text("{{ raise_exception('only users') }}")
        with pytest.raises(CheckpointError, match="chat template: only users; use --raw"):
            Chat(folder).text.encode(USER)

    def test_an_older_onnxruntime(self, exported: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        import onnxruntime

        folder = exported()[1]
        path = folder / "onnx" / LAST
        path.write_bytes(path.read_bytes()[:-40])  # what an old version says to unknown operators
        monkeypatch.setattr(onnxruntime, "__version__", "1.20.1")
        with pytest.raises(KernelError, match=r"needs onnxruntime 1.23 or newer, 1.20.1 is"):
            OnnxDecoder(folder)
        monkeypatch.undo()
        with pytest.raises(KernelError, match="can't open it"):
            OnnxDecoder(folder)
