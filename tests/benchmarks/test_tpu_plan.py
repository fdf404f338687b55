"""The plan for TPUs: its arithmetic by hand, its programs' shapes, and its error without libtpu."""

import importlib.util

import _tpu_chips
import _tpu_compile
import jax
import numpy as np
import pytest
import tpu_plan
from _hlo import Collective
from _tpu_chips import Chip
from _tpu_estimate import Block, Facts, collective_seconds, compute_seconds, estimate
from _tpu_list import DATA, FULLY, Uses, entries
from _tpu_programs import Attention, Place, ask_tell, flux, sit
from jax.sharding import AxisType, Mesh

from flowsde.models.flux.model import FluxConfig
from flowsde.models.sit.model import SiTConfig

CHIP = Chip(
    name="round", topology="", flops=1e12, hbm=8e9, bandwidth=1e11, link=1e9, source="made up"
)


def facts(seconds, **given):
    told = {"peak_bytes": 10**9, "flops": 1e9, "bytes": 1e9, "loops": 0, "collectives": ()}
    return Facts(optimal_seconds=seconds, compile_seconds=1.0, **(told | given))


def test_seconds_are_what_is_left_of_those_that_each_unknown_took():
    assert compute_seconds(facts(0.25), CHIP) == 0.25
    assert compute_seconds(facts(0.25 - 7), CHIP) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="must take less than a second"):
        compute_seconds(facts(0.25, flops=0.95e12), CHIP)


@pytest.mark.parametrize(
    ("kind", "group", "seconds"),
    [
        # 8 GB of which each of four chips sends what three others lack, over two links of 1 GB/s.
        ("all-gather", 4, 3.0),
        ("reduce-scatter", 4, 3.0),
        ("all-reduce", 4, 6.0),
        # Two chips have one link between them.
        ("all-gather", 2, 4.0),
        ("collective-permute", 2, 8.0),
        # Chip 0 sends a quarter to either neighbour and an eighth either way to the one opposite:
        # 2 + 2 x 1 GB over the first link of each direction, its own and those passed on.
        ("all-to-all", 4, 4.0),
    ],
)
def test_seconds_of_a_collective(kind, group, seconds):
    made = Collective(kind, 8 * 10**9, group, 1)
    assert collective_seconds(made, CHIP) == pytest.approx(seconds)
    assert collective_seconds(Collective(kind, 8 * 10**9, group, 3), CHIP) == pytest.approx(
        3 * seconds
    )


def test_an_estimate_is_the_sum_of_its_parts():
    whole = facts(
        0.5 - 4,
        peak_bytes=9 * 10**9,
        collectives=(
            Collective("all-gather", 10**9, 2, 19),
            Collective("all-gather", 10**9, 2, 1),
            Collective("all-reduce", 4 * 10**9, 4, 1),
        ),
    )
    blocks = [Block("double", 19, facts(0.125 - 1)), Block("single", 38, facts(0.25 - 2))]
    row = estimate(
        whole=whole, blocks=blocks, flops=24 * 10**12, attention=Attention(10**12, 2 * 10**12),
        nfe=16, chips=8, chip=CHIP,
    )  # fmt: skip
    compute = 19 * 0.125 + 38 * 0.25 + (0.5 - 0.125 - 0.25)
    # Filled up it is 2e12 FLOPs, on eight chips at half of 1e12 a second.
    kernel = 0.5
    exchanged = 20 * 0.5 + 3.0
    assert row["parts"]["compute_seconds"] == pytest.approx(compute)
    assert row["parts"]["attention_seconds"] == pytest.approx(kernel)
    assert row["parts"]["collective_seconds"] == pytest.approx(exchanged)
    total = compute + kernel + exchanged
    assert row["estimated_seconds"] == pytest.approx(total)
    assert row["peak_share"] == pytest.approx(3 / total)
    low, high = row["peak_share_range"]
    assert low == pytest.approx(3 / (compute + 0.25 / 0.3 + exchanged))
    assert high == pytest.approx(3 / (compute + 0.25 / 0.7))
    assert row["nfe_per_second"] == pytest.approx(16 / total / 8)
    assert row["collectives"]["all-gather"] == {
        "count": 20, "bytes": 20 * 10**9, "seconds": pytest.approx(10.0)
    }  # fmt: skip
    assert not row["fits"]
    assert row["limits"] == "collectives"
    assert sum(row["lost_seconds"].values()) == pytest.approx(total - 3)


def place(layout):
    """On devices that there are: nothing is compiled."""
    devices = np.array([jax.devices()[0]] * 8, dtype=object)[:1].reshape(1, 1, 1)
    mesh = Mesh(devices, _tpu_chips.MESH, axis_types=(AxisType.Auto,) * 3)
    return Place(mesh, layout.rules.on(mesh))


@pytest.mark.slow
def test_flops_of_a_transformer_are_those_of_its_layers():
    config = SiTConfig(width=64, depth=3, heads=4, size=16)
    program = sit(place(DATA), config, 2, 3)
    tokens, width, n = 64, 64, 6
    per_token = 2 * 12 * width**2
    attention = 4 * n * 3 * tokens**2 * width
    modulation = 2 * n * 3 * width * 6 * width
    around = n * 2 * (tokens * width * (16 + 32) + width * (256 + width + 2 * width))
    assert program.flops == n * 3 * tokens * per_token + attention + modulation + around
    assert (program.batch, program.nfe) == (6, 6)
    assert program.attention == (0, 0)


def test_flops_of_the_kernel_are_filled_up():
    # Many queries of few keys, as of a text.
    made = Attention.of(1, 1, 1, 7800, 128, keys=512)
    assert (made.flops, made.computed) == (4 * 7800 * 512 * 128, 4 * 9 * 896 * 512 * 128)
    made = Attention.of(5, 2, 3, 1100, 72)
    assert made.flops == 5 * 2 * 3 * 4 * 1100**2 * 72
    # Two blocks of 640 tokens, and whole lanes of features.
    assert made.computed == 5 * 2 * 3 * 4 * 1280**2 * 128
    assert Attention.of(5, 2, 3, 1000, 72) == (0, 0)


@pytest.mark.slow
def test_programs_are_lowered_with_all_of_their_blocks():
    config = FluxConfig(
        channels=16, heads=2, axes=(4, 6, 6), double=2, single=3, mlp=64, text=20, pooled=24
    )
    program = flux(place(FULLY), config, 64, 2, 1)
    assert [(b.name, b.depth) for b in program.blocks] == [("double block", 2), ("single block", 3)]
    program = ask_tell(place(DATA), (4, 4, 4), 2, 2)
    assert program.flops == 0 and "while" in program.lower().as_text()


def test_programs_have_names_of_their_own_and_the_ones_they_use():
    listed = entries()
    names = [entry.name for entry in listed]
    assert len(set(names)) == len(names)
    for entry in listed:
        # Layouts that are only compared have no ask and tell of their own size.
        if entry.uses and entry.layout in (DATA, FULLY):
            assert {entry.uses.decode, *entry.uses.encode} <= set(names)


class Lowered:
    """A program that is compiled by a stand-in, which counts."""

    def __init__(self, text, made):
        self.text, self.made, self.compiled = text, made, 0

    def as_text(self):
        return self.text

    def compile(self, compiler_options):
        self.compiled += 1
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


def test_what_compiling_told_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(_tpu_compile, "version", lambda name: "0")
    compiled = jax.jit(lambda x: x @ x).lower(np.ones((8, 8), np.float32)).compile()
    told = compiled.cost_analysis() | {"optimal_seconds": -0.75}
    monkeypatch.setattr(type(compiled), "cost_analysis", lambda self: told)
    program = Lowered("a program", compiled)
    found = _tpu_compile.facts(program, "v5e:2x4", tmp_path)
    assert (found.flops, found.optimal_seconds, found.collectives) == (told["flops"], -0.75, ())
    assert found.peak_bytes >= 2 * 4 * 8 * 8
    assert _tpu_compile.facts(program, "v5e:2x4", tmp_path) == found
    assert program.compiled == 1
    _tpu_compile.facts(program, "v6e:2x4", tmp_path)
    assert program.compiled == 2


@pytest.mark.parametrize(
    "words",
    [
        "Ran out of memory in memory space hbm. Used 24.5G of 15.75G hbm.",
        "Ran out of memory on HBM, the total memory required for HLO temporaries (24.5G) exceeds "
        "available HBM (15.75G).",
    ],
)
def test_a_program_without_room_says_what_it_wants(tmp_path, monkeypatch, words):
    monkeypatch.setattr(_tpu_compile, "version", lambda name: "0")
    error = jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {words}")
    program = Lowered("a large program", error)
    for _ in range(2):
        with pytest.raises(_tpu_compile.TooLarge) as error:
            _tpu_compile.facts(program, "v5e:2x4", tmp_path)
        assert error.value.bytes == 24.5 * 2**30
    assert program.compiled == 1
    program = Lowered("another", jax.errors.JaxRuntimeError("INTERNAL: something else"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        _tpu_compile.facts(program, "v5e:2x4", tmp_path)


def test_seconds_of_a_search_are_of_its_rounds():
    def row(name, seconds, batch, **given):
        keys = {key: None for key in tpu_plan.SHARED}
        told = {"fits": True, "peak_bytes": 10**9, "estimated_seconds": seconds, "batch": batch}
        return keys | {"name": name} | told | given

    rows = [row("a", 2.0, 16), row("d", 0.25, 8), row("t", 0.5, 16), row("e", 0.8, 8)]
    uses = {"a": Uses("d", "t", ("e",)), "d": Uses("missing", "t", (), 100)}
    made, other = tpu_plan.searches({r["name"]: r for r in rows}, uses)
    # Sixteen candidates a round, decoded eight at a time.
    assert made["seconds_per_image"] == pytest.approx(500 / 16 * (2.0 + 2 * 0.25 + 0.5) + 0.1)
    assert made["resident_bytes"] == 3 * 10**9 and made["missing"] == []
    # What is not planned is named, and left out.
    assert other["seconds_per_image"] == pytest.approx(100 / 8 * (0.25 + 0.5))
    assert (other["missing"], other["seconds"]["decode"]) == (["missing"], None)
    assert other["resident_bytes"] is None
    rows[1]["fits"] = False
    assert tpu_plan.searches({r["name"]: r for r in rows}, uses) == []


def test_a_longer_video_runs_the_loop_of_a_short_one_more_often():
    block = Block("four frames", 4, facts(0.1))
    attention = Attention(flops=10**9, computed=10**9)
    row = estimate(
        whole=facts(0.13), blocks=[block], flops=10**9, attention=attention, nfe=0, chips=8,
        chip=CHIP,
    )  # fmt: skip
    assert tpu_plan.looped(row, None) == row["estimated_seconds"]
    kernel = row["parts"]["attention_seconds"]
    # A first frame, .03 s, and twenty times four.
    expected = 0.03 + 20 * 0.1 + kernel * 21 / 5
    assert tpu_plan.looped(row, 20) == pytest.approx(expected) and kernel > 0


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"no libtpu.*pip install"):
        _tpu_chips.mesh(_tpu_chips.V5E, (8, 1, 1))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs flowsde[tpu]")
def test_eight_chips_are_described():
    mesh = _tpu_chips.mesh(_tpu_chips.V6E, (4, 1, 2))
    assert mesh.shape == {"prompt": 4, "particle": 1, "model": 2}
