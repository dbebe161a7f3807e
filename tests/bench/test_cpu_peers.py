"""Every contender of the CPU race computes x · Wᵀ of its own weights, or is refused."""

import pytest
import torch

pytest.importorskip("soroq._cpu", reason="soroq._cpu is not built")

from soroq.bench.kernels import cpu, cpu_peers, ggml
from soroq.bench.kernels.cpu_contender import LIMITS, Contender, Ready, Unfit
from soroq.bench.kernels.cpu_problem import Problem, make_problem
from soroq.bench.kernels.cpu_race import Runner
from soroq.bench.kernels.shapes import Shape

SHAPE = Shape("test", 1040, 256)  # more rows than are distinct, and a ragged end of them
ROWS = (1, 3, 17)  # 17: graphs of one product
COLD = 700_000  # a few copies, and a last chunk that is full


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(SHAPE, max(ROWS))


def check(contender: Contender, problem: Problem) -> None:
    try:
        ready = contender.prepare(problem, COLD)
    except Unfit as why:
        pytest.skip(f"{contender.name}: {why}")
    assert ready.copies * ready.nbytes > COLD
    for M in ROWS:
        runner = ready.runner(problem.inputs[:M])
        assert runner.products * len(runner.units) == ready.copies
        y = runner.result()
        assert y.shape == (M, SHAPE.N)
        assert problem.relative_error(y, ready.weight) <= LIMITS[contender.precision]
        for _ in range(len(runner.units) + 1):
            runner.advance()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("precision", ["int8", "bfloat16", "float32"])
def test_soroq(problem: Problem, bits: int, precision: str) -> None:
    check(cpu_peers.Soroq("soroq", bits, 128, precision), problem)


@pytest.mark.parametrize("contender", [cpu_peers.TorchLinear(), cpu_peers.TorchInt4()], ids=str)
def test_torch(problem: Problem, contender: Contender) -> None:
    check(contender, problem)


@pytest.mark.parametrize("level", [1, 4])
@pytest.mark.parametrize("block", [32, 128])
def test_onnxruntime(problem: Problem, block: int, level: int) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from soroq.bench.kernels.onnxruntime_peer import MatMulNBits

    check(MatMulNBits(block, level, 1, shared=False), problem)  # other tests have sessions


@pytest.mark.parametrize("variant", ["", " f32 q128"])
def test_openvino(problem: Problem, variant: str) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    from soroq.bench.kernels.openvino_peer import OpenVino

    check(OpenVino(variant, 1), problem)


@pytest.mark.parametrize("repacked", [False, True], ids=["plain", "repacked"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K", "IQ4_XS", "Q8_0"])
@pytest.mark.parametrize("flavour", ["llama.cpp", "ik_llama.cpp"])
def test_ggml(problem: Problem, flavour: str, kind: str, repacked: bool) -> None:
    from soroq.bench.kernels.ggml_peer import MulMat

    if (flavour, kind, repacked) == ("ik_llama.cpp", "IQ4_XS", False):
        pytest.skip("its product is off by 5 %: the race refuses it")
    folder = ggml.directory(flavour)
    if folder is None:
        pytest.skip(f"no libraries of {flavour}: bench/peers/README.md says how to get them")
    check(MulMat(ggml.Ggml(flavour, folder, 1), kind, repacked), problem)


def test_a_wrong_product_is_refused_and_not_timed() -> None:
    class Wrong:
        name, family, layout, precision = "soroq wrong", "soroq", "none", "int8"

        def prepare(self, problem: Problem, cold_bytes: int) -> Ready:
            def runner(x: torch.Tensor) -> Runner:
                y = 1.05 * x @ problem.repeat(problem.rows).t()
                return Runner([lambda: None], 1, lambda: y)

            return Ready(1, 1, problem.rows, runner)

    small = make_problem(Shape("small", 24, 64), 2)
    top = cpu.Ceilings(1.0, 1.0, 1.0)
    wrong = Wrong()
    entries = cpu._round([(wrong, wrong.prepare(small, 0))], small, 2, 0.0, top)
    assert len(entries) == 1 and "median" not in entries[0]
    assert entries[0]["error"].startswith("wrong: relative error 5.0e-02")


def test_what_is_not_a_number_is_infinitely_wrong() -> None:
    small = make_problem(Shape("small", 24, 64), 1)
    y = torch.full((1, 24), float("nan"))
    assert small.relative_error(y, small.rows) == float("inf")


def test_trial_races_all_and_keeps_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError("a trial was recorded")

    monkeypatch.setattr(cpu, "append_records", refuse)
    monkeypatch.setattr(cpu, "measure_ceilings", lambda *_: cpu.Ceilings(40.0, 1e3, 250.0))
    assert cpu.main(["--try", "--threads", "1", "--who", "soroq int8,torch"]) == 0
    said = capsys.readouterr().out
    assert "trial 96 x 256, M 3, 1 threads, cold" in said and "soroq int8" in said
    assert cpu.main(["--shapes", "4b upside"]) == 2
    assert "'4b upside' is neither" in capsys.readouterr().out
