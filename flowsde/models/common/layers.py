"""What the ports share: numerics, layers with named axes, blocks stacked for a scan, attention.

Weights and activations have dtypes of their own; norms and time are always float32. Each
parameter carries the logical names of its axes as metadata, which `logical_axes` reads: a
sharding rule maps them to the axes of a mesh. Names: "embed" (features of the residual
stream), "heads" (heads x features of one), "mlp", "vocab", "layer" (of stacked blocks), None.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from flowsde.models.common.by_head import attention_by_head
from flowsde.models.common.quantised import QuantisedLinear
from flowsde.models.common.ring import ring_attention
from flowsde.models.common.splash import LONG, splash_attention
from flowsde.sharding import Axes, ShardingRules, axes_of

Implementation = Literal["xla", "cudnn", "splash", "tpu", "by_head"] | None
M = TypeVar("M", bound=nnx.Module)

ACTIVATIONS = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))
"""What ports compute in."""

_QK_EPSILON = 1e-6
_drawn, _zeros = nnx.initializers.lecun_normal(), nnx.initializers.zeros_init()
_unfilled = ContextVar("unfilled", default=False)


def kernel_init(key: jax.Array, shape: Sequence[int], *args: Any, **given: Any) -> jax.Array:
    """That of `nnx.Linear`, but where only shapes are wanted."""
    made = _zeros if _unfilled.get() else _drawn
    return made(key, shape, *args, **given)


def shapes_of(build: Callable[[], M]) -> M:
    """A module with shapes in the place of parameters, as of `nnx.eval_shape`.

    Most of what that takes for a small model is tracing how its weights are drawn, which is left
    out.
    """
    before = _unfilled.set(True)
    try:
        return nnx.eval_shape(build)
    finally:
        _unfilled.reset(before)


@dataclasses.dataclass(frozen=True)
class Numerics:
    """How a port computes.

    Attributes:
      dtype: of activations, float32 or bfloat16. Not float16: those of T5 and FLUX pass 65,504,
        the largest value that it has, and libraries that use it clip them.
      param_dtype: of weights, float16 as well.
      attention: "splash" is `flowsde.models.common.splash`, which has no scores to add to and takes
        no masks by query: there, and where it is "xla" or "cudnn", `jax.nn.dot_product_attention`.
        "tpu" is "splash" where there are many scores, see `by_kernel`, and "xla" elsewhere.
        "by_head" is `flowsde.models.common.by_head`. None is "tpu" on TPUs, "by_head" on CPUs but
        under a mesh, see `jax.set_mesh`, whose devices may each have some of the heads, and
        elsewhere JAX's choice.
      rules: of the mesh that `jax.set_mesh` makes known: over which of its axes tokens are split,
        see `flowsde.models.common.sequence`, and where kernels run.
    """

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    attention: Implementation = None
    rules: ShardingRules = ShardingRules()

    def __post_init__(self) -> None:
        if jnp.dtype(self.dtype) not in ACTIVATIONS:
            raise ValueError(
                f"dtype of activations must be float32 or bfloat16, got {jnp.dtype(self.dtype)}; "
                "weights may have another, param_dtype"
            )

    @classmethod
    def of_weights(cls, dtype: DTypeLike) -> "Numerics":
        """How weights are run by default: bfloat16 in bfloat16, all others in float32."""
        wide = jnp.dtype(dtype) not in ACTIVATIONS
        return cls(dtype=jnp.float32 if wide else dtype, param_dtype=dtype)

    def linear(
        self,
        features: int,
        to: int,
        axes: Axes,
        *,
        bias: bool = True,
        kernel_init: nnx.Initializer = kernel_init,
        bias_init: nnx.Initializer = _zeros,
        rngs: nnx.Rngs,
    ) -> nnx.Linear:
        """A linear layer with kernel [features, to] of the named axes."""
        return nnx.Linear(
            features,
            to,
            use_bias=bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=nnx.with_metadata(kernel_init, axes=axes),
            bias_init=nnx.with_metadata(bias_init, axes=axes[1:]),
            rngs=rngs,
        )


FLOAT32 = Numerics()
"""Float32 throughout."""


def parameter(
    shape: tuple[int, ...], axes: Axes, numerics: Numerics, rngs: nnx.Rngs, scale: float = 0.02
) -> nnx.Param:
    """A free parameter, normal with standard deviation `scale`."""
    value = scale * (
        jnp.zeros(shape, jnp.float32)
        if _unfilled.get()
        else jax.random.normal(rngs.params(), shape, jnp.float32)
    )
    return nnx.Param(value.astype(numerics.param_dtype), axes=axes)


def stack(build: Callable[[nnx.Rngs], M], depth: int, rngs: nnx.Rngs) -> M:
    """`depth` modules with independent weights, each leaf with a leading axis of them."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def all_of(rngs: nnx.Rngs) -> M:
        return build(rngs)

    return all_of(rngs)


def scan(stacked: nnx.Module, step: Callable[[Any, Any], Any], carry: Any) -> Any:
    """``carry = step(block, carry)`` for each of the stacked blocks, compiled once."""
    graph, state = nnx.split(stacked)

    def body(carry: Any, block: nnx.State) -> tuple[Any, None]:
        return step(nnx.merge(graph, block), carry), None

    return jax.lax.scan(body, carry, state)[0]


def scan_some(
    stacked: nnx.Module,
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    numbers: tuple[int, int],
    each: Any = None,
) -> tuple[Any, Any]:
    """``carry, out = step(block, carry, own)`` for some of the stacked blocks, compiled once.

    Blocks are taken by their number: a slice of the first of them would be a copy.

    Args:
      stacked: blocks.
      step: of one.
      carry: what enters the first.
      numbers: of the first, and of that behind the last.
      each: a pytree with a leading axis of these blocks, of which each step has its `own`.

    Returns:
      What leaves the last, and all of `out`, stacked.
    """
    graph, state = nnx.split(stacked)

    def body(carry: Any, of: tuple[jax.Array, Any]) -> tuple[Any, Any]:
        i, own = of
        return step(nnx.merge(graph, jax.tree.map(lambda a: a[i], state)), carry, own)

    return jax.lax.scan(body, carry, (jnp.arange(*numbers), each))


def kernel_in(layer: nnx.Linear | QuantisedLinear, dtype: DTypeLike) -> jax.Array:
    """The kernel [in, out] of a layer in a dtype, for products that are not one of all of it."""
    if isinstance(layer, QuantisedLinear):
        return layer.kernel_in(dtype)
    return layer.kernel.get_value().astype(dtype)


def outputs(
    layer: nnx.Linear | QuantisedLinear, x: jax.Array, sizes: Sequence[int]
) -> list[jax.Array]:
    """A linear layer's features of x [n, tokens, features], in groups of these sizes.

    A product for each: where weights are divided among devices, groups of one product would have
    to be exchanged, and on a TPU each would be copied.
    """
    kernel = kernel_in(layer, x.dtype)
    spans = [slice(end - size, end) for size, end in zip(sizes, np.cumsum(sizes), strict=True)]
    made = [x @ kernel[:, span] for span in spans]
    if layer.bias is None:
        return made
    bias = layer.bias.get_value().astype(x.dtype)
    return [y + bias[None, None, span] for y, span in zip(made, spans, strict=True)]


def weights(layer: nnx.Linear | QuantisedLinear, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias in the dtype of x."""
    assert layer.bias is not None
    return kernel_in(layer, x.dtype), layer.bias.get_value().astype(x.dtype)


def rms_norm(
    features: int, axes: Axes, numerics: Numerics, rngs: nnx.Rngs, epsilon: float = _QK_EPSILON
) -> nnx.RMSNorm:
    """A norm over the root mean square of the features, in float32."""
    return nnx.RMSNorm(
        features,
        epsilon=epsilon,
        dtype=jnp.float32,
        param_dtype=numerics.param_dtype,
        scale_init=nnx.with_metadata(nnx.initializers.ones_init(), axes=axes),
        rngs=rngs,
    )


class QKNorm(nnx.Module):
    """Queries and keys [..., features], each over their root mean square, in float32."""

    def __init__(
        self, features: int, numerics: Numerics, rngs: nnx.Rngs, epsilon: float = _QK_EPSILON
    ):
        self.query, self.key = (
            rms_norm(features, (None,), numerics, rngs, epsilon) for _ in range(2)
        )
        self.numerics = numerics

    def __call__(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        if q.dtype != jnp.float32 and _implementation(self.numerics) in _OF_TPUS:
            # Else a TPU's compiler has the products before write float32, which is what is read
            # here and takes twice as long to be moved.
            q, k = jax.lax.optimization_barrier((q, k))
        return self.query(q), self.key(k)


def heads_of(parts: Sequence[jax.Array], heads: int) -> list[jax.Array]:
    """q, k and v [n, tokens, heads, d] of their features [n, tokens, heads d]."""
    return [a.reshape(*a.shape[:2], heads, -1) for a in parts]


def by_kernel(queries: int, keys: int) -> bool:
    """Whether attention on TPUs is the kernel's: by its scores, as many of a few words may be."""
    return queries * keys >= LONG**2


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    numerics: Numerics,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
    split: bool = False,
) -> jax.Array:
    """Attention of q [n, queries, heads, d] over k, v [n, keys, heads, d].

    Args:
      q: queries.
      k: keys.
      v: values.
      numerics: whose implementation is used.
      bias: added to the scaled scores, [n or 1, heads, queries, keys].
      mask: True where a query may look, [n or 1, heads or 1, queries, keys].
      causal: whether queries see no later keys.
      scale: of the scores; 1 / sqrt(d) by default.
      split: whether keys are split over devices as queries are, by `sequence.Split`: they are
        gathered for "splash", and else it is `flowsde.models.common.ring`.

    Returns:
      [n, queries, heads x d].
    """
    name = _implementation(numerics)
    if name == "tpu":
        name = "splash" if by_kernel(q.shape[1], k.shape[1]) else "xla"
    y = None
    if bias is None and (mask is None or mask.shape[1:3] == (1, 1)):
        seen = None if mask is None else jnp.broadcast_to(mask[:, 0, 0], k.shape[:2])
        how: Any = {"seen": seen, "scale": scale, "rules": numerics.rules}
        if name == "splash":
            y = splash_attention(q, k, v, causal=causal, **how)
        elif split and not causal:
            y = ring_attention(q, k, v, **how)
    if y is not None:
        return y.reshape(*y.shape[:2], -1)
    if name == "by_head":
        y = attention_by_head(q, k, v, bias=bias, mask=mask, causal=causal, scale=scale)
        return y.reshape(*y.shape[:2], -1)
    # JAX's own code adds bfloat16 to float32, which a strict promotion mode would not let pass.
    with jax.numpy_dtype_promotion("standard"):
        y = jax.nn.dot_product_attention(
            q, k, v, bias, mask, scale=scale, is_causal=causal,
            implementation="xla" if name == "splash" else name,
        )  # fmt: skip
    return y.reshape(*y.shape[:2], -1)


_OF_TPUS = ("tpu", "splash")


def _implementation(numerics: Numerics) -> Implementation:
    """The one that is asked for, or that for the platform."""
    if numerics.attention is not None:
        return numerics.attention
    platform = jax.default_backend()
    if platform == "cpu" and jax.sharding.get_abstract_mesh().empty:
        return "by_head"
    return "tpu" if platform == "tpu" else None


def logical_axes(model: nnx.Module) -> nnx.State:
    """Names of the axes of each parameter, as a pytree of tuples beside `nnx.state(model)`.

    Stacked blocks have one more in front, "layer"; a parameter without names has only None.
    """

    params = nnx.state(model, nnx.Param)
    return nnx.map_state(lambda path, param: param.replace(axes_of(param)), params)
