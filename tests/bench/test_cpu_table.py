"""The table and the picture of the CPU bench say what the records say."""

import xml.etree.ElementTree as ElementTree
from typing import Any

from soroq.bench.kernels.cpu_table import last_run, table
from soroq.bench.kernels.roofline import fastest, roofline

Entry = dict[str, Any]


def entry(kernel: str, peer: str, median: float, **more: Any) -> Entry:
    N, K, M = 13824, 1152, more.get("M", 1)
    nbytes = N * K // 2
    return {
        "kernel": kernel,
        "peer": peer,
        "shape": "1b gate_up",
        "N": N,
        "K": K,
        "M": M,
        "threads": 2,
        "cold": True,
        "median": median,
        "p20": median - 1,
        "p80": median + 1,
        "bytes": nbytes,
        "ops": 2 * M * N * K,
        "gb_s": nbytes / median / 1e3,
        "gop_s": 2 * M * N * K / median / 1e3,
        "fraction": 0.5,
        "bound": "read",
        "read_gb_s": 78.0,
        "int8_gop_s": 2000.0,
        "fma_gflop_s": 510.0,
        "time": "2026-01-02T00:00:00Z",
        "device": "cpu-x",
        "commit": "abcdef1234",
        "versions": {"torch": "2.13.0", "llama.cpp": "AVX2 AVX512"},
    } | more


RUN = [
    entry("soroq int8", "soroq", 100.0),
    entry("torch bfloat16", "torch", 400.0),
    entry("torch int4", "torch", 250.0),
    entry("llama.cpp Q4_0", "llama.cpp", 180.0),
    entry("llama.cpp Q8_0", "llama.cpp", 300.0),
]


def test_row_holds_times_of_each_library_by_its_fastest_kernel() -> None:
    said = table(RUN)
    row = next(line for line in said.splitlines() if line.startswith("| 1b gate_up"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["1b gate_up 13824 × 1152", "1", "100 (99–101)"]
    assert cells[5:] == ["0.50 read", "2.50", "1.80", "llama.cpp Q4_0"]
    head = next(line for line in said.splitlines() if line.startswith("| N × K"))
    assert "torch | llama.cpp | best peer" in head and "onnxruntime" not in head
    assert "### soroq int8, 2 threads, cold" in said and "torch 2.13.0" in said


def test_rows_are_in_the_order_of_shapes_and_M_however_they_were_raced() -> None:
    late = [entry("soroq int8", "soroq", 9.0, M=M) for M in (512, 4, 16)]
    rows = [line for line in table([*late, *RUN]).splitlines() if line.startswith("| 1b")]
    assert [int(row.split("|")[2]) for row in rows] == [1, 4, 16, 512]


def test_last_run_is_of_one_device_and_commit_and_never_mixes_a_cell() -> None:
    old = [entry(e["kernel"], e["peer"], 1.0, time="2026-01-01T00:00:00Z") for e in RUN]
    gone = entry("openvino g128", "openvino", 1.0, time="2026-01-01T00:00:00Z")
    other_commit = entry("soroq int8", "soroq", 1.0, M=4, commit="0", time="2026-01-01T09:00:00Z")
    failed = {"kernel": "x", "peer": "torch", "error": "no", "time": "2026-01-03T00:00:00Z"}
    found = last_run([*old, gone, other_commit, *RUN, failed])
    assert sorted(e["median"] for e in found) == sorted(e["median"] for e in RUN)
    assert last_run([failed]) == []


def test_picture_has_a_point_for_each_library_ours_on_top() -> None:
    points = fastest(RUN)
    kernels = [point["kernel"] for point in points]
    assert sorted(kernels[:2]) == ["llama.cpp Q4_0", "torch int4"] and kernels[2] == "soroq int8"
    root = ElementTree.fromstring(roofline([*RUN, entry("soroq int8", "soroq", 9.0, cold=False)]))
    space = "{http://www.w3.org/2000/svg}"
    notes = [title.text or "" for title in root.iter(f"{space}title")]
    assert len(notes) == 3 and notes[-1].startswith("soroq int8, 1b gate_up, M 1: 319 GOP/s")
