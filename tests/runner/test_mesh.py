"""On a mesh: the same results, everything where it belongs, and nothing moved that need not be."""

import dataclasses
import functools
import importlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from methods import METHODS, also, assert_same
from problems import batch, decode, host_reward, reward, row

import flowsde as fs
from flowsde.models.common.layers import FLOAT32
from flowsde.runner.arguments import prepare
from flowsde.sharding import place

runner = importlib.import_module("flowsde.runner.run")
programs = importlib.import_module("flowsde.runner.rounds")

KEY = jax.random.key(6)
PROMPTS = 6
NAMES = ("prompt", "particle", "model")
RBF = METHODS["rbf"]


class Net(nnx.Module):
    """A velocity that depends on the prompt, of parameters that are split over "model"."""

    def __init__(self, rngs):
        self.up = FLOAT32.linear(5, 8, ("embed", "mlp"), rngs=rngs)
        self.down = FLOAT32.linear(8, 2, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x, t, cond):
        h = jnp.concatenate([x, cond["frequency"], t[:, None]], axis=-1)
        return x - self.down(jnp.tanh(self.up(h)))


@functools.cache
def flow():
    return fs.Flow.from_nnx(Net(nnx.Rngs(3)), (2,), decode=decode)


def mesh_of(*sizes, names=NAMES, kind=AxisType.Auto):
    return jax.make_mesh(sizes, names[: len(sizes)], (kind,) * len(sizes))


def options(n=PROMPTS):
    ids, cond = batch(PROMPTS, seed=2)
    return {"cond": jax.tree.map(lambda a: a[:n], cond), "prompt_ids": ids[:n]}


def go(search=RBF, how=fs.run, n=PROMPTS, **others):
    return how(KEY, flow(), search, reward, **(options(n) | also(search) | others))


def same(result, other, size=None):
    result, other = (r._replace(state=None) for r in (result, other))
    size = options()["cond"]["size"] if size is None else size
    assert_same(jax.device_get(result), jax.device_get(other), size)


def lies(array, mesh, *axes):
    return array.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(*axes)), array.ndim)


@pytest.fixture(scope="module", params=METHODS.values(), ids=METHODS)
def search(request):
    return request.param


@functools.cache
def alone(search):
    """Without a mesh."""
    return go(search, **told(search))


def told(search):
    """Prompts of one size for guidance that goes far, else of all.

    Pulled by gradients of 1e6 such particles end at 1e8, where how a program rounds shows in the
    third digit; on a mesh or not.
    """
    if search not in (METHODS["guided smc, tempered, funnel"], METHODS["guided psi"]):
        return {}
    cond = options()["cond"]
    return {"cond": cond | {"size": jnp.ones_like(cond["size"])}}


@pytest.mark.slow
def test_results_are_those_without_a_mesh(search):
    """Six prompts, which four devices do not share evenly; draws bit for bit in test_noise."""
    for sizes in ((2, 1, 2), (4, 1, 1), (1, 2, 2)):
        same(go(search, mesh=mesh_of(*sizes), **told(search)), alone(search))


@pytest.mark.slow
def test_the_state_stays_where_it_is(search):
    """Asked and told, in chunks, it is split over the prompt axis and whole along the others."""
    mesh = mesh_of(2, 2)
    for result in go(search, fs.iterate, mesh=mesh, chunk_size=4, **told(search)):
        for leaf in jax.tree.leaves((result.state, result.x, result.image)):
            assert leaf.shape[0] == PROMPTS and lies(leaf, mesh, "prompt")
    same(result, alone(search))


@pytest.mark.slow
def test_begun_on_a_mesh_ended_on_another():
    first, *_, last = go(how=fs.iterate, mesh=mesh_of(2, 2), chunk_size=4)
    for mesh in (mesh_of(4), None):
        same(go(mesh=mesh, resume=first), last)
    # From one device, to which its parameters are committed.
    params = jax.device_put(flow().params, jax.devices()[2])
    on_one = dataclasses.replace(flow(), params=params)
    first = next(fs.iterate(KEY, on_one, RBF, reward, **options()))
    same(go(mesh=mesh_of(4), resume=first), last)


@pytest.mark.slow
def test_a_search_that_sorts_by_states_is_told_all():
    """`keep` does, of equals: by what stands for them it could not."""
    search = fs.search.keep(METHODS["svdd"], 2)
    found, wanted = (go(search, **own) for own in ({"mesh": mesh_of(1, 2)}, {}))
    same(found, wanted)
    for name in ("x", "reward"):
        a, b = (jax.device_get(getattr(one.kept, name)) for one in (found, wanted))
        size = options()["cond"]["size"].reshape(-1, *[1] * (a.ndim - 1))
        scale = size if name == "reward" else 1.0
        np.testing.assert_allclose(a / scale, b / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_one_prompt_alone_and_a_reward_outside_jax():
    one = {"cond": row(options()["cond"], 2), "prompt_ids": None}
    single = go(**one)
    for kind in (AxisType.Auto, AxisType.Explicit):
        found = go(mesh=mesh_of(2, 2, kind=kind), **one)
        assert found.x.shape == (2,) and isinstance(found.nfe, int)
        assert found.info.reward.shape == single.info.reward.shape
        same(found, single, size=one["cond"]["size"])
    hosted = fs.run(KEY, flow(), RBF, fs.rewards.host(host_reward), mesh=mesh_of(2, 2), **options())
    same(hosted, alone(RBF))


@pytest.mark.slow
def test_model_decoder_and_reward_find_the_mesh():
    """For kernels that the compiler cannot split."""
    found = []

    def note(kind, x):
        found.append((kind, jax.sharding.get_abstract_mesh().shape_tuple))
        return x

    noting = fs.Flow.from_callable(
        lambda params, x, t, cond: note("model", x), None, (2,), decode=lambda x: note("decoder", x)
    )
    fs.run(KEY, noting, RBF, lambda images, cond: note("reward", images[:, 0]),
           mesh=mesh_of(2, 2), prompt_ids=[3, 4], chunk_size=4)  # fmt: skip
    shape = (("prompt", 2), ("particle", 2))
    assert {kind for kind, _ in found} == {"model", "decoder", "reward"}
    assert all(seen == shape for _, seen in found)


@pytest.mark.slow
def test_the_second_run_compiles_nothing(caplog):
    with jax.log_compiles():
        go(mesh=mesh_of(1, 1, 2), nfe=36)
        assert "Compiling" in caplog.text
        caplog.clear()
        go(mesh=mesh_of(1, 1, 2), target_reward=0.5, nfe=37)
    assert "Compiling" not in caplog.text


def collectives(search, mesh, **others):
    """(kind, sizes of its arrays, name) of each collective of the compiled `run`."""
    settings = dict.fromkeys(("chunk_size", "target_reward", "nfe", "resume", "rules"))
    settings |= {"invalid": "error", "mesh": mesh} | options(4) | others
    job = prepare(KEY, flow(), search, reward, **settings)
    program = programs.run_rounds.lower(runner._begin(job), job.model, job.program, job.sizes)
    kinds = (
        "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    )
    found = []
    for line in program.compile().as_text().splitlines():
        if match := re.search(rf"= (.*?) ({kinds})(?:-start)?\(", line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            sizes = [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]
            found.append((match[2], sizes, re.search('op_name="(.*?)"', line)[1]))
    assert "while" in program.compile().as_text()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_selection_costs_no_collective_where_particles_live_together(chunk_size):
    """One number a round says whether all are done, one whether there is more to evaluate."""
    found = collectives(RBF, mesh_of(4, 1, 1), chunk_size=chunk_size)
    assert found and all(kind == "all-reduce" and set(sizes) == {1} for kind, sizes, _ in found)
    assert not any("shard_map" in name for *_, name in found)
    in_rounds = [name.rpartition("/")[2] for *_, name in found if "while/body" in name]
    assert sorted(in_rounds) == ["reduce_and", "reduce_max"]


def moved_by(search, chunk_size=None):
    """Values by kind that devices exchange that share the candidates of 4 prompts, a round; all
    other collectives are of one number."""
    moved = {}
    for kind, sizes, name in collectives(search, mesh_of(1, 4), chunk_size=chunk_size):
        if "shard_map" in name:
            moved[kind] = moved.get(kind, 0) + sum(sizes)
        else:
            assert set(sizes) == {1}
    return moved


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_where_particles_span_devices_numbers_and_the_chosen_move(chunk_size):
    """Of two chains' 16 candidates, at most what each goes on from, its best child and its best."""
    wide = fs.search.rbf(
        nfe=41, kernel=RBF.inner.kernel, grid=RBF.inner.grid, chains=2, width=8, finish="mean"
    )
    # A reward of each; how often it was computed, and differentiated. Both means of the chosen.
    numbers = 4 * 16 * (1 if chunk_size is None else 3)
    chosen, particle = 4 * 2 * 3, 2
    assert moved_by(wide, chunk_size) == {
        "all-gather": numbers,
        "all-reduce": 2 * chosen * particle,
    }


@pytest.mark.slow
def test_a_search_that_keeps_all_candidates_is_told_all():
    smc = METHODS["smc"]
    rows, particle = 4 * smc.n_candidates, 2
    assert moved_by(smc) == {"all-gather": rows + 2 * rows * particle}


SVDD = METHODS["svdd"].inner


class Doubled(type(SVDD)):
    """Computes with what it is told."""

    def tell(self, state, candidates, evals):
        return super().tell(state, candidates, evals._replace(x0=2.0 * evals.x0))


@dataclasses.dataclass(frozen=True)
class Loose(fs.search.SearchBase):
    """Keeps the array of a candidate beside its particles, and answers with that."""

    inner: fs.search.Search

    nfe = property(lambda self: self.inner.nfe)
    interpolant = property(lambda self: self.inner.interpolant)
    n_candidates = property(lambda self: self.inner.n_candidates)
    max_rounds = property(lambda self: self.inner.max_rounds)

    def with_nfe(self, nfe):
        return Loose(self.inner.with_nfe(nfe))

    def init(self, key, shape, target_reward, nfe):
        return self.inner.init(key, shape, target_reward, nfe), jnp.zeros(shape)

    def ask(self, state):
        inner, asked = self.inner.ask(state[0])
        return (inner, state[1]), asked

    def tell(self, state, candidates, evals):
        inner, info = self.inner.tell(state[0], candidates, evals)
        return (inner, evals.x0[0]), info

    def best(self, state):
        return self.inner.best(state[0])._replace(x0=state[1])

    def done(self, state):
        return self.inner.done(state[0])

    def path(self, state):
        return self.inner.path(state[0])


SVDD_FIELDS = {f.name: getattr(SVDD, f.name) for f in dataclasses.fields(SVDD)}


@pytest.mark.slow
@pytest.mark.parametrize("search", [Doubled(**SVDD_FIELDS), Loose(SVDD)], ids=["doubled", "loose"])
def test_a_search_that_does_more_than_select_is_told_all(search):
    same(go(search, nfe=20, mesh=mesh_of(1, 2)), go(search, nfe=20))


@pytest.mark.slow
def test_of_split_parameters_only_activations_move():
    found = collectives(RBF, mesh_of(2, 1, 2))
    moved = [(kind, sizes) for kind, sizes, _ in found if set(sizes) != {1}]
    assert moved == [("all-reduce", [2 * RBF.n_candidates * 2])], "the second layer's output"


@pytest.mark.slow
def test_parameters_lie_as_the_rules_say():
    mesh = mesh_of(2, 1, 2)

    def specs(rules):
        settings = dict.fromkeys(("chunk_size", "target_reward", "nfe", "resume"))
        settings |= {"invalid": "error", "mesh": mesh, "rules": rules} | options()
        params = prepare(KEY, flow(), RBF, reward, **settings).flow.params
        return {
            "/".join(path): leaf.get_value().sharding.spec
            for path, leaf in nnx.to_flat_state(params)
        }

    both = {"up/bias": ("model",), "down/bias": (None,)}
    split = {"up/kernel": (None, "model"), "down/kernel": ("model", None)} | both
    assert specs(None) == {path: PartitionSpec(*axes) for path, axes in split.items()}
    # Fully sharded: over the prompt axis as well.
    whole = go(mesh=mesh, rules=fs.ShardingRules(mlp=("model", "prompt")))
    same(whole, alone(RBF))
    held = specs(fs.ShardingRules(mlp=("model", "prompt")))
    assert held["up/kernel"] == PartitionSpec(None, ("model", "prompt"))


@pytest.mark.slow
def test_what_cannot_be_split_is_refused():
    refused = [
        ({"mesh": jax.devices()}, TypeError, "mesh must be a jax.sharding.Mesh, got list"),
        ({"rules": fs.ShardingRules()}, ValueError, "rules .* expected a mesh with them"),
        ({"mesh": mesh_of(4), "rules": {"mlp": "model"}}, TypeError, "rules must be .*, got dict"),
        ({"mesh": mesh_of(2, 2, names=("prompt", "other"))}, ValueError,
         "mesh axis 'other' of 2 devices splits neither prompts, nor particles, nor any"),
        ({"mesh": mesh_of(4), "rules": fs.ShardingRules(mlp="tensor")}, ValueError,
         "rules map 'mlp' to 'tensor', expected one of the mesh's axes, prompt"),
        ({"mesh": mesh_of(1, 1, 4), "rules": fs.ShardingRules(embed="model", mlp=None)}, ValueError,
         r"rules split axis 'embed' of parameter .*'down'.*'bias'.*, of size 2, over the 4 dev"),
        ({"mesh": mesh_of(2, 1, 2), "rules": fs.ShardingRules(embed="model")}, ValueError,
         "rules map both 'mlp' and 'embed' .* to mesh axis 'model'"),
        ({"mesh": mesh_of(4), "rules": fs.ShardingRules(particle="prompt")}, ValueError,
         "rules split both prompts and particles over mesh axis 'prompt', expected different"),
    ]  # fmt: skip
    for arguments, error, message in refused:
        with pytest.raises(error, match=message):
            go(**arguments)


def test_rules_are_checked():
    with pytest.raises(ValueError, match="'color' is no logical axis, expected one of prompt"):
        fs.ShardingRules().spec("color")
    with pytest.raises(ValueError, match="map both 'mlp' and 'mlp' .* to mesh axis 'model'"):
        fs.ShardingRules(mlp=("model", "model"))
    rules = fs.ShardingRules(embed=["prompt", "particle"])
    assert rules.spec("embed", None, "mlp") == PartitionSpec(("prompt", "particle"), None, "model")
    assert hash(rules) == hash(fs.ShardingRules(embed=("prompt", "particle")))


def test_rows_that_do_not_divide_are_split_along_their_features():
    """A table has as many rows as there happen to be: 1,001 labels of SiT, 30,524 words of BLIP."""
    mesh, table = mesh_of(2, 1, 2), ("vocab", "embed")

    def spec(shape, names, **rules):
        return fs.ShardingRules(**rules).sharding("labels", shape, names, mesh).spec

    assert spec((1000, 1152), table) == PartitionSpec("model", None)
    assert spec((1001, 1152), table) == PartitionSpec(None, "model")
    assert spec((1152, 1001), table[::-1]) == PartitionSpec("model", None)
    both = spec((1001, 1152), table, embed="prompt")
    assert both == PartitionSpec(None, ("prompt", "model"))
    # Neither, rows alone, and an axis that has no name or is no table's.
    for shape, names, axis in [
        ((1001, 1155), table, "vocab"), ((1001,), ("vocab",), "vocab"),
        ((1001, 1152), ("vocab", None), "vocab"), ((1152, 1001), ("embed", "mlp"), "mlp"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"rules split axis '{axis}' of parameter labels, of"):
            spec(shape, names)


class LinenNet(nn.Module):
    """Axes named as linen names them: logical ones, an axis of the mesh, and none."""

    @nn.compact
    def __call__(self, x, t, cond):
        h = jnp.concatenate([x, cond["frequency"], t[:, None]], axis=-1)
        glorot = nn.initializers.glorot_normal()
        up = nn.Dense(8, kernel_init=nn.with_logical_partitioning(glorot, ("embed", "mlp")))
        down = nn.Dense(2, kernel_init=nn.with_partitioning(glorot, ("model", None)))
        return x - down(jnp.tanh(up(h)))


@pytest.mark.slow
def test_linen_parameters_go_by_the_names_of_their_axes():
    """Of `with_partitioning` and `with_logical_partitioning`; the result is that without a mesh."""
    given = options(2)
    variables = LinenNet().init(KEY, jnp.ones((2, 2)), jnp.ones(2), given["cond"])
    net = fs.Flow.from_linen(LinenNet(), variables, (2,), decode=decode)
    mesh = mesh_of(2, 1, 2)
    placed = place(net, mesh, fs.ShardingRules()).params["params"]
    assert lies(placed["Dense_0"]["kernel"].value, mesh, None, "model")
    assert lies(placed["Dense_1"]["kernel"].value, mesh, "model", None)
    assert lies(placed["Dense_0"]["bias"], mesh, None)
    search = fs.search.bon(
        nfe=4, kernel=fs.kernels.ode_euler(fs.interpolants.linear()), grid=fs.grids.uniform(2)
    )
    found = [fs.run(KEY, net, search, reward, mesh=m, **given) for m in (mesh, None)]
    same(*found, size=given["cond"]["size"])
    odd = {"params": {"w": nn.LogicallyPartitioned(jnp.ones((2, 3)), ("embed", "width"))}}
    with pytest.raises(ValueError, match="'width' is no logical axis, expected one of prompt, "):
        place(odd, mesh, fs.ShardingRules())
