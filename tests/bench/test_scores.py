"""Two tiny models on windows: zero against itself, float64 truth, the cache, strides, kinds."""

import math
from pathlib import Path

import pytest
import torch

from soroq.bench.quality import scores
from soroq.bench.quality.compare import compare_text
from soroq.bench.quality.model import open_model, refuse_other_tokenizer
from soroq.bench.quality.scores import Scorer
from soroq.bench.quality.sets import EvalSet, make_set, read_passages, refuse_other_language
from soroq.core.errors import CheckError, CheckpointError
from soroq.loading import load, load_tokenizer
from soroq.models.tiny import write_tiny_model

TEXT = "Душанбе пойтахти Тоҷикистон аст. Дар мактаб хонандагон китоб мехонанд. " * 12


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def other(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with every matrix of its blocks disturbed a little."""
    from safetensors.torch import load_file, save_file

    path = write_tiny_model(tmp_path_factory.mktemp("tiny") / "other")
    tensors = load_file(path / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std()
            tensors[name] = (tensor.float() + 0.1 * noise).to(tensor.dtype)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def _set(base: Path, **options: int) -> EvalSet:
    values = {"seq_len": 64} | options
    return make_set("tg", [(TEXT, "text")], load_tokenizer(base), **values)  # type: ignore[arg-type]


def test_a_model_against_itself_is_exactly_zero(base: Path, tmp_path: Path) -> None:
    windows = _set(base)
    one = Scorer(str(base), cache=tmp_path / "a")
    two = Scorer(str(base), cache=tmp_path / "b")
    table = one.base_table(windows)
    result = compare_text(windows, table, two.quant_table(windows, one, table), one.model.tokenizer)
    assert result.delta_nll.estimate == result.delta_nll.low == result.delta_nll.high == 0
    assert result.kl.estimate == result.kl.high == result.kl_p99.estimate == result.kl_max == 0
    assert result.top1.low == result.top5.low == 1
    assert result.perplexity == result.perplexity_base


def test_numbers_are_those_of_the_whole_distribution_in_float64(
    base: Path, other: Path, tmp_path: Path
) -> None:
    windows = _set(base)
    one, two = (Scorer(str(p), cache=tmp_path) for p in (base, other))
    table = one.base_table(windows)
    got = compare_text(windows, table, two.quant_table(windows, one, table), one.model.tokenizer)
    logs = []
    for path in (base, other):
        with torch.no_grad():
            logits = load(path, dtype=torch.float64)(windows.ids).logits[:, :-1]
        logs.append(logits.log_softmax(-1))
    p, q = logs
    target = windows.ids[:, 1:, None]
    nll_p, nll_q = -p.gather(2, target)[..., 0], -q.gather(2, target)[..., 0]
    kl = (p.exp() * (p - q)).sum(-1)
    assert got.n_tokens == windows.ids.shape[0] * 63
    assert got.perplexity_base == pytest.approx(math.exp(float(nll_p.mean())), rel=1e-5)
    assert got.perplexity == pytest.approx(math.exp(float(nll_q.mean())), rel=1e-5)
    assert got.delta_nll.estimate == pytest.approx(float((nll_q - nll_p).mean()), abs=1e-5)
    assert got.kl.estimate == pytest.approx(float(kl.mean()), rel=0.02)  # the tail is sampled
    assert got.top1.estimate == pytest.approx(
        float((p.argmax(-1) == q.argmax(-1)).double().mean()), abs=2e-3
    )
    worst = divmod(int(kl.argmax()), 63)
    assert got.worst[0].position == worst[1] + 1
    # byte by byte: bits per byte from the definition
    n_bytes = len(TEXT.encode()[: got.n_tokens])
    assert got.bits_per_byte == pytest.approx(float(nll_q.sum()) / math.log(2) / n_bytes, rel=1e-3)


def test_the_base_runs_once_and_a_stopped_run_goes_on(
    base: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = _set(base)
    monkeypatch.setattr(scores, "PART", 2)
    opened: list[str] = []

    def spy(source: str, **options: object) -> object:
        opened.append(source)
        return open_model(source)

    monkeypatch.setattr(scores, "open_model", spy)
    seen: list[int] = []

    def stop(done: int, total: int, what: str) -> None:
        seen.append(done)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Scorer(str(base), cache=tmp_path, listen=stop).base_table(windows)
    assert seen == [0, 2, 4]
    seen.clear()
    again = Scorer(str(base), cache=tmp_path, listen=lambda done, total, what: seen.append(done))
    table = again.base_table(windows)
    assert seen[0] == 4
    whole = Scorer(str(base), cache=tmp_path / "new").base_table(windows)
    assert torch.equal(table.top_logp, whole.top_logp)
    assert torch.equal(table.tail_ids, whole.tail_ids)
    opened.clear()
    cached = Scorer(str(base), cache=tmp_path)
    Scorer(str(other), cache=tmp_path).quant_table(windows, cached, cached.base_table(windows))
    assert opened == [str(other)]


def test_changed_weights_are_another_model(base: Path, other: Path, tmp_path: Path) -> None:
    keys = {Scorer(str(base)).key, Scorer(str(other)).key}
    keys.add(Scorer(str(base), attention="eager").key)
    keys.add(Scorer(str(base), dtype=torch.bfloat16).key)
    assert len(keys) == 4


def test_other_attention_is_the_same_model_up_to_noise(base: Path, tmp_path: Path) -> None:
    windows = _set(base)
    one = Scorer(str(base), cache=tmp_path)
    two = Scorer(str(base), cache=tmp_path, attention="eager")
    table = one.base_table(windows)
    result = compare_text(windows, table, two.quant_table(windows, one, table), one.model.tokenizer)
    assert 0 < result.kl.estimate < 1e-8
    assert abs(result.delta_nll.estimate) < 1e-4


def test_strides_score_every_token_once_with_more_context(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    windows = _set(base, stride=20)
    seen = [
        token
        for row, counted in zip(windows.ids, windows.scored, strict=True)
        for token in row[1:][counted].tolist()
    ]
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert seen == ids[: len(seen)]
    assert len(seen) > len(ids) - 20
    # the tiny tokenizer's tokens are bytes; a letter of two counts with its first
    assert abs(int(windows.n_bytes.sum()) - len(seen)) <= 1
    assert bool(windows.scored[0].all())
    assert int(windows.scored[1].sum()) == 20
    with pytest.raises(CheckError, match="stride"):
        _set(base, stride=64)


def test_windows_have_kinds_and_short_kinds_are_pooled(base: Path) -> None:
    passages = [
        ("хабар " * 40, "news"),
        ("a" * 30, "ui"),
        ("b" * 50, "law"),
        ("шеър " * 30, "poem"),
    ]
    windows = make_set("tg", passages, load_tokenizer(base), seq_len=64)
    assert set(windows.kinds) == {"news", "poem", "other"}
    assert windows.kinds.count("other") == 1
    spread = make_set("tg", passages, load_tokenizer(base), seq_len=64, limit=3)
    assert len(spread.ids) == 3
    assert spread.sha256 != windows.sha256


def test_bytes_of_letters_are_counted_once(base: Path) -> None:
    windows = _set(base, seq_len=33)
    assert abs(int(windows.n_bytes.sum()) - windows.n_tokens) <= 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\xfa", "UTF-8"),
        ('{"text": "а"}\n{"txt": 1}'.encode(), "bad.jsonl:2"),
        (b'{"text": 5}', "bad.jsonl:1"),
        (b"", "no text"),
        (b"[1]", "bad.jsonl:1"),
    ],
)
def test_unreadable_text_is_one_clear_line(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(CheckError, match=said):
        read_passages(tmp_path / "bad.jsonl")


def test_short_or_missing_text_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="one window needs 511"):
        make_set("tg", [("кӯтоҳ", "text")], load_tokenizer(base))
    with pytest.raises(CheckError, match="does not exist"):
        read_passages(tmp_path / "no.txt")


def test_models_of_other_tokenizers_are_refused(base: Path, tmp_path: Path) -> None:
    import json

    other = write_tiny_model(tmp_path / "other")
    document = json.loads((other / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "Lowercase"}
    (other / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CheckError, match="different tokenizers"):
        refuse_other_tokenizer(load_tokenizer(base), load_tokenizer(other), "a", "b")
    refuse_other_tokenizer(load_tokenizer(base), load_tokenizer(base), "a", "b")
    twin = load_tokenizer(base)
    twin.bos_token = twin.eos_token
    with pytest.raises(CheckError, match="different tokenizers"):
        refuse_other_tokenizer(load_tokenizer(base), twin, "a", "b")


def test_weights_that_do_not_fit_their_config_are_refused(base: Path, tmp_path: Path) -> None:
    import json

    for name, value in (("vocab_size", 100), ("hidden_size", 32), ("intermediate_size", 96)):
        other = write_tiny_model(tmp_path / name)
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps(config | {name: value}))
        with pytest.raises(CheckpointError, match="does not fit config.json"):
            open_model(str(other))


RUSSIAN = "Сегодня в городе открыли новую школу, и дети пришли на первый урок вместе с родителями. "
TAJIK = "Имрӯз дар шаҳр мактаби нав кушода шуд ва кӯдакон бо падару модар ба дарси аввал омаданд. "


def test_a_text_named_by_a_language_must_be_in_it() -> None:
    for name in ("tg", "ru"):
        own, other = (TAJIK, RUSSIAN) if name == "tg" else (RUSSIAN, TAJIK)
        refuse_other_language(name, [(own * 30, "text"), (other * 10, "text")])
        with pytest.raises(CheckError, match=f"{name!r} is not in that language"):
            refuse_other_language(name, [(other * 30, "text"), (own * 10, "text")])
    refuse_other_language("news", [(RUSSIAN, "text")])
    refuse_other_language("tg", [("12 34 56", "text")])


def test_weights_stay_as_stored_and_say_what_float_weights_say(base: Path, tmp_path: Path) -> None:
    one = make_set("tg", [(TAJIK * 30, "text")], load_tokenizer(base), seq_len=64)
    scorer = Scorer(str(base), cache=tmp_path)
    found = scorer.base_table(one)
    with torch.no_grad():
        log_p = load(base)(one.ids).logits[:, :-1].log_softmax(-1)
    want = -log_p.gather(2, one.ids[:, 1:, None]).flatten()
    torch.testing.assert_close(found.nll, want, rtol=1e-5, atol=1e-5)
    assert not any(p.ndim == 2 for p in scorer.model.network.parameters())
