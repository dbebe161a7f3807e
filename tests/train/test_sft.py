"""Conversations: their forms, which tokens are answers, and a whole run that learns to answer."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from soroq.core.errors import CalibrationError
from soroq.loading import load, load_tokenizer
from soroq.train.chat_data import GEMMA_TEMPLATE, ChatForm, read_chat_data
from soroq.train.chat_rows import Conversation, as_conversation, read_conversations
from soroq.train.loss import IGNORED
from soroq.train.sft import sft

ASKED, ANSWERED = "Пойтахти Тоҷикистон куҷост?", "Пойтахти Тоҷикистон шаҳри Душанбе аст."
PAIR = (("user", ASKED), ("assistant", ANSWERED))


@pytest.mark.parametrize(
    "row",
    [
        {
            "messages": [
                {"role": "user", "content": ASKED},
                {"role": "assistant", "content": ANSWERED},
            ]
        },
        {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}]},
        {"instruction": ASKED, "input": "", "output": ANSWERED},
        {"prompt": ASKED, "completion": ANSWERED, "input": "not this"},
        {"question": ASKED, "answer": ANSWERED},
    ],
    ids=["messages", "sharegpt", "alpaca", "completion", "question"],
)
def test_every_form_is_the_same_conversation(row: dict[str, Any]) -> None:
    assert as_conversation(row, "x").turns == PAIR


def test_alpaca_takes_its_input_and_system_along() -> None:
    row = {"instruction": "Тарҷума кун:", "input": "river", "output": "дарё", "system": "Кӯтоҳ."}
    assert as_conversation(row, "x").turns == (
        ("system", "Кӯтоҳ."),
        ("user", "Тарҷума кун:\n\nriver"),
        ("assistant", "дарё"),
    )


def _turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "матн"} for role in roles]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (_turns("user"), "the last turn is the user's"),
        (_turns("assistant", "user"), "roles must alternate"),
        (_turns("user", "user", "assistant"), "roles must alternate"),
        (_turns("user", "tool"), "turn 2 has role 'tool'; known: user"),
        (_turns(), "roles must alternate"),
        ({"messages": [{"role": "user", "content": " "}]}, r"turn 1 \(user\) has no text"),
        ({"messages": [{"role": "user"}]}, "isn't in its known form"),
        ({"messages": 3}, "isn't in its known form"),
        ({"text": "матн"}, r"fields \['text'\] are no conversation \(messages;"),
        ([1], "not an object"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(row: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(_turns("user", "assistant")) + "\n\n" + json.dumps(row))
    with pytest.raises(CalibrationError, match=rf"c\.jsonl:3: .*{message}"):
        list(read_conversations(path))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_files_of_every_kind(suffix: str, tmp_path: Path) -> None:
    rows = [{"question": ASKED, "answer": ANSWERED}, {"question": "a", "answer": "b"}]
    path = tmp_path / f"c{suffix}"
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    assert [c.turns[1][1] for c in read_conversations(path)] == [ANSWERED, "b"]


def test_a_missing_or_unknown_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="do not exist"):
        list(read_conversations(tmp_path / "none.jsonl"))
    (tmp_path / "c.csv").write_text("a,b")
    with pytest.raises(CalibrationError, match=r"use \.jsonl"):
        list(read_conversations(tmp_path / "c.csv"))


def _learned(chat: Any, conversation: Conversation) -> list[str]:
    """Return the stretches of text that are learned."""
    example = ChatForm(chat.tokenizer).encode(conversation)
    parts: list[list[int]] = [[]]
    for token, learned in zip(example.tokens.tolist(), example.learned.tolist(), strict=True):
        if learned:
            parts[-1].append(token)
        elif parts[-1]:
            parts.append([])
    return [chat.tokenizer.decode(part) for part in parts if part]


def test_only_answers_and_the_mark_behind_them_are_learned(chat: Any) -> None:
    turns = (
        ("system", "Кӯтоҳ ҷавоб деҳ."),
        ("user", "Салом"),
        ("assistant", "Салом! Чӣ хел ёрӣ расонам?"),
        ("user", "Салом! Чӣ хел ёрӣ расонам?"),  # the same words, not learned here
        ("assistant", "Хуб."),
    )
    conversation = Conversation(turns, "x")
    assert _learned(chat, conversation) == [
        "Салом! Чӣ хел ёрӣ расонам?<end_of_turn>",
        "Хуб.<end_of_turn>",
    ]
    text = ChatForm(chat.tokenizer).render(conversation.messages)
    assert text == (
        "<bos><start_of_turn>user\nКӯтоҳ ҷавоб деҳ.\n\nСалом<end_of_turn>\n"
        "<start_of_turn>model\nСалом! Чӣ хел ёрӣ расонам?<end_of_turn>\n"
        "<start_of_turn>user\nСалом! Чӣ хел ёрӣ расонам?<end_of_turn>\n"
        "<start_of_turn>model\nХуб.<end_of_turn>\n"
    )
    example = ChatForm(chat.tokenizer).encode(conversation)
    assert example.tokens.tolist().count(chat.tokenizer.bos_token_id) == 1


def test_marks_in_the_text_of_the_real_tokenizer() -> None:
    """Gemma's own tokenizer merges and replaces spaces: answers are found by their places."""
    from soroq.core.errors import CheckpointError

    try:
        tokenizer = load_tokenizer("gemma3-270m")
    except CheckpointError as error:
        pytest.skip(str(error))
    example = ChatForm(tokenizer).encode(Conversation(PAIR * 2, "x"))
    text = tokenizer.decode(example.tokens[example.learned])
    assert text == f"{ANSWERED}<end_of_turn>" * 2


def test_a_template_that_rewrites_earlier_turns_is_refused(chat: Any) -> None:
    form = ChatForm(chat.tokenizer)
    form.template = "{{ messages | length }}" + GEMMA_TEMPLATE
    with pytest.raises(CalibrationError, match="earlier turns in another way"):
        form.encode(Conversation(PAIR * 2, "x"))
    form.template = "{{ raise_exception('no system here') }}"
    with pytest.raises(CalibrationError, match="x: the chat template says no system here"):
        form.encode(Conversation(PAIR, "x"))


def test_the_end_of_an_answer_is_a_mark_and_no_word(chat: Any) -> None:
    form = ChatForm(chat.tokenizer)
    mark = form.end_of(form.encode(Conversation(PAIR, "x")))
    assert mark == chat.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    form.template = GEMMA_TEMPLATE.replace("<end_of_turn>", ".")
    assert form.end_of(form.encode(Conversation(PAIR, "x"))) is None


def test_a_tokenizer_without_template_and_marks_is_refused(tiny: Any) -> None:
    with pytest.raises(CalibrationError, match="no chat template"):
        ChatForm(tiny.tokenizer)


def _write(path: Path, pairs: list[tuple[str, str]]) -> str:
    path.write_text("\n".join(json.dumps({"question": q, "answer": a}) for q, a in pairs))
    return str(path)


def _config(chat: Any, file: str, **changes: Any) -> Any:
    data = {"corpus": "", "files": [file], "seq_len": 160, "shares": {}, "valid_share": 0.2}
    return chat.config(data=data | changes.pop("data", {}), **changes)


def test_what_became_of_the_conversations_is_counted(chat: Any, tmp_path: Path) -> None:
    pairs = [(f"Чанд аст {i}?", f"Ҷавоб ин аст, ки он {i} аст.") for i in range(8)]
    pairs += [pairs[0], ("Савол " * 40, "ҷавоб"), ("Савол?", "Ин ҷавоби хеле дароз аст. " * 9)]
    config = _config(chat, _write(tmp_path / "c.jsonl", pairs))
    data, end = read_chat_data(config, ChatForm(chat.tokenizer), 0)
    assert data.record["counts"] == {
        "conversations": 11,
        "duplicates": 1,
        "cut": 2,
        "no_answer_within_seq_len": 1,
        "held_out": 2,
    }
    assert end == chat.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    again, _ = read_chat_data(config, ChatForm(chat.tokenizer), 0)
    for one, other in zip(data.validation["tg"], again.validation["tg"], strict=True):
        assert torch.equal(one.tokens, other.tokens)
    held_out = {
        text
        for packed in data.validation["tg"]
        for text in re.findall(r"ки он \d аст", chat.tokenizer.decode(packed.tokens))
    }
    for _ in range(20):
        packed = data.packer.next()
        assert not held_out & set(re.findall(r"ки он \d аст", chat.tokenizer.decode(packed.tokens)))
        assert (packed.labels != IGNORED).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": {"en": 1.0}}, "no answers in 'en' to train on; there are tg"),
        ({"seq_len": 16}, "0 conversations are left of 2"),
        ({"files": []}, "data.files is missing"),
    ],
    ids=["language", "too-short", "no-files"],
)
def test_data_that_can_not_be_trained_on_is_refused(
    chat: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = _write(tmp_path / "c.jsonl", [(ASKED, ANSWERED), (ASKED + "?", ANSWERED)])
    with pytest.raises(CalibrationError, match=message):
        read_chat_data(_config(chat, file, data=changes), ChatForm(chat.tokenizer), 0)


def test_a_run_learns_to_answer_and_to_stop(chat: Any, tmp_path: Path) -> None:
    pairs = [(f"{ASKED} {i}", "Душанбе аст.") for i in range(6)]
    config = _config(
        chat,
        _write(tmp_path / "c.jsonl", pairs),
        train={"steps": 60, "learning_rate": 3e-3, "batch": 2},
        run={"checkpoint_every": 60, "validate_every": 60},
    )
    told: list[str] = []
    sft(
        config,
        tmp_path / "out",
        chat.tokenizer,
        resume=False,
        listen=lambda done, total, what: told.append(what),
    )
    assert told[0].startswith("conversations 6, duplicates 0") and "Gemma 3" in told[0]
    record = json.loads((tmp_path / "out" / "soroq-train.json").read_text())
    assert record["validation"]["60"]["tg"] < 0.5 < record["validation"]["0"]["tg"]
    tokenizer = load_tokenizer(tmp_path / "out")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": ASKED + " 9"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    model = load(tmp_path / "out")
    assert (
        chat.tokenizer.convert_tokens_to_ids("<end_of_turn>")
        in model.generation_config.eos_token_id
    )
    written = model.generate(prompt, max_new_tokens=60, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.decode(written) == "Душанбе аст.<end_of_turn>"
    before = load_file(chat.model / "model.safetensors")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == before.keys()


def test_a_stopped_run_goes_on_to_the_same_bytes(chat: Any, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int, what: str) -> None:
        if done == 5:
            raise Stop

    pairs = [(f"{ASKED} {i}", "Душанбе аст. " * (i % 4 + 1)) for i in range(20)]
    config = _config(chat, _write(tmp_path / "c.jsonl", pairs))

    def run(out: str, listen: Any, resume: bool = False) -> None:
        sft(config, tmp_path / out, chat.tokenizer, resume=resume, listen=listen)

    run("whole", lambda *_: None)
    with pytest.raises(Stop):
        run("stopped", stop)
    run("stopped", lambda *_: None, resume=True)
    for file in ("model.safetensors", "soroq-train.json", "generation_config.json"):
        one, other = ((tmp_path / name / file).read_bytes() for name in ("whole", "stopped"))
        assert one == other, file
