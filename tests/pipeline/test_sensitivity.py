"""Sensitivity of a tiny model against running it whole, and mixes that a budget allows."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from soroq.core.errors import SchemeError
from soroq.core.recipe import Recipe, parse_override
from soroq.core.schemes import get_scheme
from soroq.io.checkpoint import open_checkpoint
from soroq.loading import load
from soroq.methods.rtn import quantize_rtn
from soroq.models.registry import find_layout
from soroq.models.tiny import write_tiny_model
from soroq.pipeline import sensitivity as module
from soroq.pipeline.order import ReorderedCheckpoint, reordered
from soroq.pipeline.run import quantize
from soroq.pipeline.sensitivity import FORMATS, Sensitivity, load_sensitivity, measure, mix


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return write_tiny_model(folder / "base", hidden_size=128, vocab_size=270)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    found = torch.randint(4, 260, (4, 40), generator=torch.Generator().manual_seed(0))
    found[:, 0] = 2
    return found


@pytest.fixture(scope="module")
def found(base: Path, ids: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Sensitivity:
    return measure(open_checkpoint(base), ids, tmp_path_factory.mktemp("work"))


def test_costs_are_those_of_the_whole_model_with_one_group_rounded(
    base: Path, ids: torch.Tensor, found: Sensitivity
) -> None:
    with torch.no_grad():
        teacher = load(base)(ids).logits.double()
    seen = teacher.flatten(0, 1).topk(64).indices.flatten()
    candidates = torch.cat([ids.flatten(), seen]).unique()
    log_p = teacher[..., candidates].log_softmax(-1)
    assert len(found.groups) == 12
    for group in (found.groups[0], found.groups[6], found.groups[11]):
        model = load(base)
        for name in group.modules:
            linear = model.get_submodule(name)
            rounded = quantize_rtn(linear.weight.detach(), FORMATS["int4-g128"]).dequantize()
            linear.weight = torch.nn.Parameter(rounded)
        with torch.no_grad():
            log_q = model(ids).logits.double()[..., candidates].log_softmax(-1)
        want = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        assert group.kl == {"tg": pytest.approx(want, rel=0.02)}, group.modules


def test_finer_formats_take_more_bytes_and_cost_less(found: Sensitivity) -> None:
    for group in found.groups:
        rows = [group.formats[name] for name in ("int4-g128", "int4-g64", "int4-g32", "int8-g128")]
        assert [b for b, _ in rows] == sorted(b for b, _ in rows)
        assert rows[0][1] == 1.0
        assert rows[0][1] > rows[2][1] > rows[3][1]
        assert rows[3][1] < 0.05 * rows[0][1]


def test_blocks_read_anew_give_the_same(
    base: Path, ids: torch.Tensor, found: Sensitivity, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "RESIDENT_WEIGHTS", 0)
    again = measure(open_checkpoint(base), ids, tmp_path)
    assert [g.kl for g in again.groups] == [g.kl for g in found.groups]


def test_languages_are_measured_apart_and_count_alike(
    base: Path, ids: torch.Tensor, found: Sensitivity, tmp_path: Path
) -> None:
    languages = ("tg", "en", "tg", "en")
    both = measure(open_checkpoint(base), ids, tmp_path, languages=languages)
    for one, whole in zip(both.groups, found.groups, strict=True):
        assert sum(one.kl.values()) / 2 == pytest.approx(whole.kl["tg"], rel=1e-5)
    # English a hundred times as large changes no choice, as a limit it does
    scaled = replace(
        both,
        groups=tuple(replace(g, kl=g.kl | {"en": 100 * g.kl["en"]}) for g in both.groups),
    )
    recipe = Recipe(get_scheme("int4-rtn"))
    assert mix(scaled, recipe, bits_per_weight=4.6)[1] == mix(both, recipe, bits_per_weight=4.6)[1]
    limit = sum(g.kl["tg"] for g in both.groups)
    assert set(mix(both, recipe, max_loss=2 * limit)[1].values()) == {"int4-g128"}
    told = set(mix(scaled, recipe, max_loss=2 * limit)[1].values())
    assert told & {"int8-g128", "int8-row"}


def test_whole_rows_of_int8_are_a_format(found: Sensitivity) -> None:
    for group in found.groups:
        # never more bytes than groups of 128; the tiny model's rows are no longer than those
        assert group.formats["int8-row"][0] <= group.formats["int8-g128"][0]
        assert group.formats["int8-row"][1] < 0.1 * group.formats["int4-g32"][1]


def test_whole_rows_of_int4_pay_for_finer_groups(tmp_path: Path, ids: torch.Tensor) -> None:
    """At the size of groups of 128, what is rounded well in whole rows pays for the rest."""
    wide = write_tiny_model(
        tmp_path / "wide", hidden_size=256, intermediate_size=256, vocab_size=270
    )
    found = measure(open_checkpoint(wide), ids, tmp_path)
    bits = (
        8
        * sum(g.formats["int4-g128"][0] for g in found.groups)
        / sum(g.weights for g in found.groups)
    )
    changed, told = mix(found, Recipe(get_scheme("int4-rtn")), bits_per_weight=bits)
    assert {"int4-row"} < set(told.values())
    expected = {g.modules[0]: g for g in found.groups}
    cost = sum(g.kl["tg"] * g.formats[told[name]][1] for name, g in expected.items())
    assert cost < sum(g.kl["tg"] for g in found.groups)
    quantize(wide, tmp_path / "out", recipe=changed, calibration=None)
    with torch.no_grad():
        assert load(tmp_path / "out")(ids).logits.isfinite().all()


def test_a_stopped_measurement_goes_on_where_it_was(
    base: Path, ids: torch.Tensor, found: Sensitivity, tmp_path: Path
) -> None:
    partial = tmp_path / "s.json.partial"
    told: list[int] = []

    def stop_at_five(done: int, total: int, what: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(open_checkpoint(base), ids, tmp_path, partial=partial, listen=stop_at_five)
    again = measure(
        open_checkpoint(base), ids, tmp_path, partial=partial,
        listen=lambda done, total, what: told.append(done),
    )  # fmt: skip
    assert again == found
    assert sorted(set(told) - {0}) == [5, 6, 7, 8, 9, 10, 11, 12]
    other = measure(open_checkpoint(base), ids[:2], tmp_path, partial=partial)
    assert other.groups != found.groups


def test_an_ordered_model_is_measured_in_its_order(
    base: Path, ids: torch.Tensor, found: Sensitivity, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(base)
    layout = find_layout(checkpoint.config, set(checkpoint.names()))
    recipe = Recipe(replace(get_scheme("int4-rtn"), reordered=True))
    ordered = reordered(checkpoint, layout, recipe)
    assert isinstance(ordered, ReorderedCheckpoint)
    partial = tmp_path / "s.json.partial"
    found.save(partial)  # of the same model and windows, its channels as they are
    got = measure(ordered, ids, tmp_path, partial=partial)
    assert got.reordered == ordered.order.sha256()
    got.save(tmp_path / "s.json")
    assert load_sensitivity(tmp_path / "s.json") == got

    written = tmp_path / "written"
    shutil.copytree(base, written)
    tensors = {name: ordered.load(name).contiguous() for name in ordered.names()}
    save_file(tensors, written / "model.safetensors", {"format": "pt"})
    (tmp_path / "other").mkdir()
    wanted = measure(open_checkpoint(written), ids, tmp_path / "other")
    assert [g.kl for g in got.groups] == [g.kl for g in wanted.groups]
    assert [g.formats for g in got.groups] == [g.formats for g in wanted.groups]
    assert got.groups != found.groups


def test_files_come_back_as_they_were(found: Sensitivity, tmp_path: Path) -> None:
    found.save(tmp_path / "s.json")
    assert load_sensitivity(tmp_path / "s.json") == found
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(SchemeError, match="not a file of soroq sensitivity"):
        load_sensitivity(tmp_path / "bad.json")


def test_a_budget_is_kept_in_the_file_and_fused_modules_agree(
    base: Path, found: Sensitivity, tmp_path: Path
) -> None:
    recipe = Recipe(get_scheme("int4-rtn"))
    changed, told = mix(found, recipe, bits_per_weight=4.8)
    assert len(told) == 21
    assert len(set(told.values())) > 1
    for group in found.groups:
        assert len({told[name] for name in group.modules}) == 1
    manifest = quantize(base, tmp_path / "out", recipe=changed, calibration=None)
    weights = {m: g.weights for g in found.groups for m in g.modules[:1]}
    total = sum(g.weights for g in found.groups)
    shapes = {name: load(base).get_submodule(name).weight.numel() for name in told}
    bits = sum(layer["bits_per_weight"] * shapes[layer["module"]] for layer in manifest.layers)
    assert weights
    assert bits / total <= 4.8
    assert bits / total > 4.5


def test_a_mix_beats_uniform_formats_of_its_size(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    uneven = write_tiny_model(tmp_path / "uneven", hidden_size=128, vocab_size=270)
    tensors = load_file(uneven / "model.safetensors")
    for (
        name,
        tensor,
    ) in tensors.items():  # two blocks lie near the 4-bit grid: rounding costs little
        if name.endswith("_proj.weight") and ".layers.0." not in name:
            coarse = quantize_rtn(tensor.float(), FORMATS["int4-g128"]).dequantize()
            tensors[name] = coarse.to(tensor.dtype)
    save_file(tensors, uneven / "model.safetensors", {"format": "pt"})
    ids = torch.randint(4, 260, (4, 40), generator=torch.Generator().manual_seed(0))
    (tmp_path / "work").mkdir()
    found = measure(open_checkpoint(uneven), ids, tmp_path / "work")
    test = torch.randint(4, 260, (8, 40), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        log_p = load(uneven)(test).logits.log_softmax(-1)
    total = sum(g.weights for g in found.groups)
    bits = 8 * sum(g.formats["int4-g32"][0] for g in found.groups) / total
    mixed, _ = mix(found, Recipe(get_scheme("int4-rtn")), bits_per_weight=bits)
    uniform = Recipe(get_scheme("int4-rtn", group_size=32, symmetric=False))
    losses = {}
    for name, recipe in (("uniform", uniform), ("mix", mixed)):
        quantize(uneven, tmp_path / name, recipe=recipe, calibration=None)
        with torch.no_grad():
            log_q = load(tmp_path / name, packed=False)(test).logits.log_softmax(-1)
        losses[name] = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    assert losses["mix"] < 0.85 * losses["uniform"]


def test_overridden_modules_keep_what_they_have(found: Sensitivity) -> None:
    recipe = Recipe(get_scheme("int4-rtn"), overrides=(parse_override("*.0.*:int8"),))
    changed, told = mix(found, recipe, max_loss=sum(g.kl["tg"] for g in found.groups))
    assert not any(".layers.0." in name for name in told)
    scheme = changed.scheme_for("model.layers.0.mlp.up_proj")
    assert scheme is not None
    assert scheme.weight.bits == 8
    assert set(told.values()) == {"int4-g128"}


def test_budgets_that_can_not_be_met_are_refused(found: Sensitivity) -> None:
    recipe = Recipe(get_scheme("int4"))
    for budget in ({"bits_per_weight": 3.0}, {"max_loss": 1e-9}):
        with pytest.raises(SchemeError):
            mix(found, recipe, **budget)  # type: ignore[arg-type]
