"""Distillation on tiny models: gradients, gain, resume, and what is left alone."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from soroq.calib.dataset import CalibrationSet, ids_sha256
from soroq.core.recipe import Recipe, parse_override
from soroq.core.scheme import QuantArgs
from soroq.core.schemes import get_scheme
from soroq.inspection import describe
from soroq.io.checkpoint import Checkpoint, open_checkpoint
from soroq.loading import load
from soroq.manifest import read_manifest
from soroq.models.registry import find_layout
from soroq.models.runner import DecoderRunner
from soroq.models.tiny import write_tiny_model
from soroq.pipeline import distill as distill_module
from soroq.pipeline.activations import ActivationFile
from soroq.pipeline.distill import HELD_OUT, Head, Student, distill
from soroq.pipeline.run import quantize
from soroq.pipeline.stage import Stage

SEQ_LEN = 24
INT4 = QuantArgs(bits=4, group_size=32, symmetric=False)


class _Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "base", hidden_size=64)


def _ids(n: int, seed: int = 0) -> torch.Tensor:
    ids = torch.randint(4, 260, (n, SEQ_LEN), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 2
    return ids


def _calibration(n: int = 32) -> CalibrationSet:
    facts = {"name": "t", "n": n, "seq_len": SEQ_LEN, "mix": {"tg": 1.0}}
    manifest = facts | {"sha256": ids_sha256(_ids(n))}
    return CalibrationSet(_ids(n), ("tg",) * n, manifest)


def _recipe(name: str = "int4-rtn", *, distilled: bool = True, **changes: Any) -> Recipe:
    scheme = replace(get_scheme(name, group_size=32), distilled=distilled)
    values = {"n_samples": 32, "seq_len": SEQ_LEN, "distill_rate": 5e-3, "distill_epochs": 2.0}
    return Recipe(scheme, **(values | changes))  # type: ignore[arg-type]


def _staged(
    base: Path, out: Path, recipe: Recipe
) -> tuple[Stage, Checkpoint, DecoderRunner, ActivationFile]:
    """Return what `distill` starts from: a run that was stopped when distillation began."""

    def stop(progress: Any) -> None:
        if progress.unit == "distill":
            raise _Stopped

    with pytest.raises(_Stopped):
        quantize(base, out, recipe=recipe, calibration=_calibration(), listen=stop)
    stage, checkpoint = Stage(out), open_checkpoint(base)
    runner = DecoderRunner(find_layout(checkpoint.config, set(checkpoint.names())))
    path = stage.activation_file(runner.layout.n_blocks, reference=True)
    reference = ActivationFile(path, *_calibration().ids.shape, runner.hidden_size)
    return stage, checkpoint, runner, reference


def _divergence(quantized: Path, base: Path, ids: torch.Tensor) -> float:
    with torch.no_grad():
        log_p = load(base)(ids).logits.log_softmax(-1)
        log_q = load(quantized, packed=False)(ids).logits.log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.mark.parametrize("embed", [None, INT4], ids=["own-embedding", "int4-embedding"])
def test_gradients_block_by_block_are_those_of_the_whole_model(
    embed: QuantArgs | None, base: Path, tmp_path: Path
) -> None:
    recipe = _recipe(embed=embed)
    stage, checkpoint, runner, reference = _staged(base, tmp_path / "out", recipe)
    ids = _calibration().ids
    embedding = distill_module._embedding(stage, runner, recipe)
    head = Head(checkpoint, runner, ids, reference, embedding)
    student = Student(stage, checkpoint, runner, recipe, head)
    rows = torch.tensor([3, 5])
    value = student.accumulate_(ids[rows], lambda x: head.loss(x, rows))

    # the same in one graph: the candidates are the whole vocabulary of the tiny model
    model = load(base, packed=False)
    teacher = model.model(input_ids=ids[rows], use_cache=False).last_hidden_state
    for index in range(runner.layout.n_blocks):
        model.model.layers[index] = student.block(index)
    got = {name: p.grad for name, p in (student.deltas | student.norms).items()}
    for parameter in (student.deltas | student.norms).values():
        parameter.grad = None
    own = head.weight.float()
    if embedding is not None:
        own = embedding.dequantize()[head.candidates]
        model.model.embed_tokens.weight.data.copy_(embedding.dequantize())
    hidden = model.model(input_ids=ids[rows], use_cache=False).last_hidden_state
    log_p = (teacher @ head.weight.float().t()).log_softmax(-1)
    log_q = (hidden @ own.t()).log_softmax(-1)
    loss = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    loss.backward()
    assert value == pytest.approx(float(loss.detach()), rel=0.02)  # the file rounds to bfloat16
    for name, parameter in (student.deltas | student.norms).items():
        want, found = parameter.grad, got[name]
        assert want is not None and found is not None, name
        assert float((want - found).norm()) < 0.1 * float(want.norm()) + 1e-9, name


@pytest.mark.parametrize("name", ["int4-rtn", "int4-awq"])
def test_distilled_models_diverge_less_on_unseen_tokens(
    name: str, base: Path, tmp_path: Path
) -> None:
    test = _ids(8, seed=5)
    found = {}
    for distilled in (False, True):
        out = tmp_path / str(distilled)
        recipe = _recipe(name, distilled=distilled, n_samples=128, distill_rate=1e-3)
        manifest = quantize(base, out, recipe=recipe, calibration=_calibration(128))
        found[distilled] = _divergence(out, base, test)
        assert (manifest.distilled is not None) == distilled
    assert manifest.distilled is not None
    assert manifest.distilled["kl_after"] < manifest.distilled["kl_before"]
    assert found[True] < 0.99 * found[False]


def test_a_quantized_embedding_is_learned_around(base: Path, tmp_path: Path) -> None:
    """What is told is the finished model's divergence, its embedding and head included."""
    out = tmp_path / "out"
    manifest = read_manifest_of(base, out, _recipe(embed=INT4))
    held_out = _calibration().ids[HELD_OUT - 1 :: HELD_OUT]
    assert manifest.distilled is not None and manifest.distilled["kept"]
    want = _divergence(out, base, held_out)
    assert manifest.distilled["kl_after"] == pytest.approx(want, rel=0.05)


def test_only_scales_and_norms_change(base: Path, tmp_path: Path) -> None:
    override = (parse_override("*.layers.0.*:fp8-rtn"), parse_override("*.layers.1.mlp.*:skip"))
    outs = []
    for distilled in (False, True):
        recipe = _recipe(distilled=distilled, overrides=override)
        quantize(base, tmp_path / str(distilled), recipe=recipe, calibration=_calibration())
        outs.append(open_checkpoint(tmp_path / str(distilled)))
    before, after = outs
    changed = set()
    assert before.names() == after.names()
    for name in before.names():
        assert before.info(name) == after.info(name) or "weight_scale" in name or "norm" in name
        if not torch.equal(before.load(name), after.load(name)):
            changed.add(name)
    assert changed
    for name in changed:
        assert name.endswith("weight_scale") or "norm" in name, name
    assert not any("layers.0" in name and "proj" in name for name in changed)
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "True", dtype=torch.float32)
    test = _ids(2, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(test).logits, load(tmp_path / "True")(test).logits, rtol=1e-4, atol=1e-4
        )


def test_a_stopped_distillation_goes_on_with_the_same_bytes(base: Path, tmp_path: Path) -> None:
    recipe = _recipe("int4")
    quantize(base, tmp_path / "whole", recipe=recipe, calibration=_calibration())
    for stop_at in (2, distill_module.SAVE_EVERY + 1, 2 * distill_module.SAVE_EVERY):
        out = tmp_path / f"stopped-{stop_at}"

        def stop(progress: Any, stop_at: int = stop_at) -> None:
            if progress.unit == "distill" and progress.done == stop_at:
                raise _Stopped

        with pytest.raises(_Stopped):
            quantize(base, out, recipe=recipe, calibration=_calibration(), listen=stop)
        quantize(base, out, recipe=recipe, calibration=_calibration(), resume=True)
        for file in sorted((tmp_path / "whole").iterdir()):
            if file.name != "soroq-run.json":
                assert file.read_bytes() == (out / file.name).read_bytes(), (stop_at, file.name)


def test_blocks_read_anew_give_the_same_as_blocks_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(base, tmp_path / "kept", recipe=_recipe(), calibration=_calibration())
    monkeypatch.setattr(distill_module, "RESIDENT_WEIGHTS", 0)
    quantize(base, tmp_path / "anew", recipe=_recipe(), calibration=_calibration())
    kept, anew = (tmp_path / name / "model.safetensors" for name in ("kept", "anew"))
    assert kept.read_bytes() == anew.read_bytes()


def test_a_result_that_does_not_help_is_dropped(base: Path, tmp_path: Path) -> None:
    recipe = _recipe(distill_rate=3.0)  # far too much: scales change sign
    stage, checkpoint, runner, reference = _staged(base, tmp_path / "out", recipe)
    ids = _calibration().ids
    tensors, report = distill(
        stage, checkpoint, runner, recipe, ids, reference, lambda done, total, what: None
    )
    assert not report.kept
    assert tensors == {}
    assert not math.isnan(report.kl_before)


def test_held_out_windows_are_never_trained_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    original = distill_module._order

    def spy(training: torch.Tensor, steps: int, seed: int) -> list[torch.Tensor]:
        order = original(training, steps, seed)
        seen.update(torch.cat(order).tolist())
        return order

    monkeypatch.setattr(distill_module, "_order", spy)
    recipe = _recipe(distill_epochs=4.0)
    manifest = read_manifest_of(base, tmp_path / "out", recipe)
    assert manifest.distilled is not None
    assert f"{manifest.distilled['steps']} steps" in (tmp_path / "out" / "README.md").read_text()
    told = dict(describe(tmp_path / "out").facts)
    assert told["distilled"].startswith(f"{manifest.distilled['steps']} steps")
    assert seen == set(range(32)) - {HELD_OUT - 1, 2 * HELD_OUT - 1}


def read_manifest_of(base: Path, out: Path, recipe: Recipe) -> Any:
    quantize(base, out, recipe=recipe, calibration=_calibration())
    manifest = read_manifest(out)
    assert manifest is not None
    return manifest


def test_the_head_looks_at_evenly_spaced_positions_of_all_windows(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, checkpoint, runner, reference = _staged(base, tmp_path / "out", _recipe())
    ids = _calibration().ids
    head = Head(checkpoint, runner, ids, reference)
    monkeypatch.setattr(distill_module, "SAMPLED_POSITIONS", 150)  # no divisor of a window
    stride = ids.numel() // 150
    everything = head._normed(reference.rows(range(len(ids)))).flatten(0, 1)
    torch.testing.assert_close(head._sample(*ids.shape), everything[::stride], rtol=0, atol=0)
