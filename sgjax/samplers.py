"""Random counts at a fixed cost: gamma, Poisson, negative binomial and binomial draws.

`jax.random` draws these by rejection in a `while` loop that ends only once *every* element of
the batch has accepted, so each draw pays for the unluckiest one. Nothing here loops on data.
A key gives one 64-bit seed (a block of the counter-based generator, which would cost more than a
draw); an integer mixer stretches it into a seed for each draw, and that into as many 32-bit words
as the method needs; the rest is elementwise arithmetic. A draw depends on its key, its place in
the array and its parameters only, not (but for the compiler's rounding) on the size of a batch
mapped over keys.
Draws carry no gradient. Normal deviates stop at ±5.4, or ±6.3 in float64 (words have 32 bits).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt32

from sgjax._types import PRNGKey

Shape: TypeAlias = tuple[int, ...] | None
Draws: TypeAlias = Float[Array, "..."]
Words: TypeAlias = UInt32[Array, "..."]
Seed: TypeAlias = tuple[Words, Words]

# Marsaglia and Tsang's tries fail most at concentration 1, by 0.048 each: 1.3e-8 for all six.
_TRIES = 6
# Counts of mean up to this are inverted term by term; one of mean 12 passes 36 with probability
# 6e-9 at most. Beyond, the Cornish-Fisher quantile is within 6e-5 of the exact law in total
# variation (most at the threshold, falling with the mean).
_THRESHOLD = 12.0
_TERMS = 36
# Above this d a try fails with probability 1 / (36 d) < 3e-6, below the test's own rounding.
_ALWAYS_ACCEPT = 1e4
# Below this overdispersion the gamma factor differs from 1 by a few float32 roundings.
_LEAST_OVERDISPERSION = 1e-12
# z = x P(w) / Q(w) with w = -log(1 - x²) puts x = 2 u - 1 to the normal quantile of u; the best
# P / Q of degrees 5 and 4 over every x that float32 tells from ±1, within 4e-7 relatively.
_ABOVE = (1.25331458, 0.509235532, 0.106054559, 0.0143812386, 0.00122948112, 1.07680124e-05)
_BELOW = (1.0, 0.144520763, 0.0337165407, 0.00344994061, 0.000128499239)
# log(1 + m) / m for 1 + m from sqrt(1/2) to sqrt(2), by Chebyshev's points, within 7e-8.
_LOG = (
    *(0.999999968, -0.500003751, 0.33334606, -0.24968907),
    *(0.199133479, -0.172782061, 0.161262479, -0.0989535074),
)


@partial(jax.jit, static_argnames="shape")
def gamma(key: PRNGKeyArray, concentration: ArrayLike, shape: Shape = None) -> Draws:
    """Gamma draws of unit rate: density x^(a-1) exp(-x) / Γ(a), with a the concentration.

    With d = a - 1/3, a standard normal z and v = (1 + z / √(9 d))³, d v is accepted if
    log u < z²/2 + d - d v + d log v (Marsaglia and Tsang, 2000). The first of six tries to pass
    is taken; where none does the last stands, being Wilson and Hilferty's (1931) cube of a
    normal. For a < 1 the draw is made at a + 1 and multiplied by u^(1/a), in logarithms.

    Arguments: `concentration` a > 0, broadcast to `shape` (its own unless given). Draws that
    would underflow are held at the smallest normal number, so none is 0. A concentration that is
    not positive, or not finite, gives nan.
    """
    return _draw(_gamma, key, shape, concentration)


@partial(jax.jit, static_argnames="shape")
def poisson(key: PRNGKeyArray, rate: ArrayLike, shape: Shape = None) -> Draws:
    """Poisson draws, as floats: P(k) = rate^k exp(-rate) / k!.

    One uniform per draw is put through the inverse of the distribution function. Up to a rate of
    12 the probabilities are summed exactly, from the tail; above, the quantile is the third-order
    expansion of Cornish and Fisher (1938) with Sheppard's corrections for a lattice (Kolassa and
    McCullagh, 1990).

    Arguments: `rate` >= 0, broadcast to `shape` (its own unless given). A rate of 0 gives 0;
    one that is negative, nan or infinite gives nan.
    """
    return _draw(lambda seed, *p: _poisson(_word(seed, 0), *p), key, shape, rate)


@partial(jax.jit, static_argnames="shape")
def negative_binomial(
    key: PRNGKeyArray, mean: ArrayLike, overdispersion: ArrayLike, shape: Shape = None
) -> Draws:
    """Negative binomial draws, as floats, of mean m and variance m + α m² (α overdispersion).

    Poisson(m α G) with G a gamma draw of concentration 1 / α (Greenwood and Yule, 1920).

    Arguments: `mean` m >= 0 and `overdispersion` α >= 0, broadcast to `shape` (or each other's).
    α = 0 gives Poisson draws, which those of small α approach smoothly; m = 0 gives 0. A mean or
    overdispersion that is negative, nan or infinite gives nan.
    """
    return _draw(_negative_binomial, key, shape, mean, overdispersion)


@partial(jax.jit, static_argnames="shape")
def binomial(
    key: PRNGKeyArray, total: ArrayLike, probability: ArrayLike, shape: Shape = None
) -> Draws:
    """Binomial draws, as floats: P(k) = C(n, k) p^k (1 - p)^(n - k), n total, p probability.

    By inversion, as `poisson`: term by term while n min(p, 1 - p) <= 12, by the Cornish-Fisher
    quantile beyond. For p > 1/2 the failures are drawn instead.

    Arguments: `total` n >= 0, a whole number, and `probability` p in [0, 1], broadcast to `shape`
    (or each other's). Draws lie in [0, n]: p = 0 or n = 0 gives 0 and p = 1 gives n. A p outside
    [0, 1], or an n that is negative or infinite, gives nan, as does a nan in either.
    """
    return _draw(lambda seed, *p: _binomial(_word(seed, 0), *p), key, shape, total, probability)


def seeds(keys: PRNGKey) -> Seed:
    """The seed of each key's stream of words, for draws by their number: one block for each."""
    data = jax.random.key_data(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 0))
    return data[:, 0], data[:, 1]


def normal_at(seed: Seed, index: ArrayLike, dtype: DTypeLike = jnp.float32) -> Draws:
    """Standard normal number `index` of each seed's stream: a pure function of both.

    Made in float32 and then cast, so that it is the same in any precision; stops at ±5.4. Several
    times cheaper than `jax.random.normal` with a key for each simulation and step.
    """
    return _normal(_word(seed, index), jnp.dtype(jnp.float32)).astype(dtype)


def poisson_at(seed: Seed, index: ArrayLike, rate: Draws) -> Draws:
    """Poisson draw (see `poisson`) from word `index` of each seed's stream: its quantile."""
    return _poisson(_word(seed, index), jax.lax.stop_gradient(rate))


def binomial_at(seed: Seed, index: ArrayLike, total: Draws, probability: Draws) -> Draws:
    """Binomial draw (see `binomial`) from word `index` of each seed's stream: its quantile."""
    return _binomial(_word(seed, index), *jax.lax.stop_gradient((total, probability)))


def _draw(
    sampler: Callable[..., Draws], key: PRNGKeyArray, shape: Shape, *parameters: ArrayLike
) -> Draws:
    """`sampler(seed, *parameters)` on flat arrays, one seed for each draw, reshaped to `shape`."""
    dtype = jnp.result_type(float, *parameters)
    own = jnp.broadcast_shapes(*(jnp.shape(p) for p in parameters))
    shape = own if shape is None else shape
    working = jnp.promote_types(dtype, jnp.float32)
    fixed = (jnp.asarray(jax.lax.stop_gradient(p), working) for p in parameters)
    values = [jnp.broadcast_to(value, shape).ravel() for value in fixed]
    block, size = jax.random.key_data(jax.random.fold_in(key, 0)), math.prod(shape)

    def draw(first: Words, second: Words, place: Words, *values: Array) -> Array:
        halves = (_word((first, second), 2 * place + half) for half in range(2))
        return sampler(tuple(halves), *values)

    flat = jax.custom_batching.custom_vmap(draw)

    # Batched, the draws are laid out as one long axis: XLA's CPU compiler unrolls a last axis
    # shorter than 16 instead of vectorising it, at five times the cost.
    @flat.def_vmap
    def _(axis_size: int, batched: list[bool], *arrays: Array) -> tuple[Array, bool]:
        pairs = zip(arrays, batched, strict=True)
        full = [x if mapped else jnp.broadcast_to(x, (axis_size, *x.shape)) for x, mapped in pairs]
        return flat(*(x.ravel() for x in full)).reshape(full[0].shape), True

    first, second = (jnp.broadcast_to(block[half], size) for half in range(2))
    draws = flat(first, second, jnp.arange(size, dtype=jnp.uint32), *values)
    return draws.reshape(shape).astype(dtype)


def _word(seed: Seed, index: ArrayLike) -> Words:
    """Word number `index` of each seed's stream: uniform, being a bijection of each seed half."""
    word = seed[0] + jnp.asarray(index, jnp.uint32) * jnp.uint32(0x9E3779B9)
    for half in (seed[1], jnp.uint32(0)):
        # The finaliser of MurmurHash3 (Appleby, 2011).
        word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
        word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
        word = word ^ (word >> 16) ^ half
    return word


def _uniform(word: Words, dtype: jnp.dtype) -> Draws:
    """Uniform in (0, 1], near 0 to full relative precision."""
    return (word.astype(dtype) + 0.5) * 2.0**-32


def _normal(word: Words, dtype: jnp.dtype) -> Draws:
    """Standard normal by inversion, rising with the word, finite and symmetric about 0."""
    # Only as many bits as the mantissa holds, so that no rounding reaches ±1.
    bits = min(32, jnp.finfo(dtype).nmant + 1)
    x = ((word >> (32 - bits)).astype(dtype) * 2 + (1 - 2**bits)) * 2.0**-bits
    if dtype != jnp.float32:
        return math.sqrt(2) * jax.lax.erf_inv(x)
    w = -_log((1 - x) * (1 + x))
    return x * _polynomial(_ABOVE, w) / _polynomial(_BELOW, w)


def _log(x: Draws) -> Draws:
    """Natural logarithm of positive normal numbers, to a few roundings, for half of its price."""
    if x.dtype != jnp.float32:
        return jnp.log(x)
    # x = m 2^e with m from sqrt(1/2) to sqrt(2).
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    m = jax.lax.bitcast_convert_type(bits - (exponent << 23), jnp.float32) - 1
    return exponent.astype(jnp.float32) * math.log(2) + m * _polynomial(_LOG, m)


def _log_complement(p: Draws) -> Draws:
    """log(1 - p) for p in [0, 1/2], small p to full relative precision."""
    if p.dtype != jnp.float32:
        return jnp.log1p(-p)
    far = p > 1 - math.sqrt(0.5)
    m = jnp.where(far, 1 - 2 * p, -p)
    return m * _polynomial(_LOG, m) - jnp.where(far, math.log(2), 0)


def _polynomial(coefficients: tuple[float, ...], x: Draws) -> Draws:
    """Horner's rule, the constant term first."""
    value = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def _gamma(seed: Seed, concentration: Draws) -> Draws:
    """Gamma draws from the first 2 * _TRIES + 1 words of each seed."""
    dtype = concentration.dtype
    valid = (concentration > 0) & (concentration < jnp.inf)
    concentration = jnp.where(valid, concentration, 1)
    boosted = concentration < 1
    d = jnp.where(boosted, concentration + 1, concentration) - 1 / 3
    tries = [_try(seed, index, d) for index in range(_TRIES)]
    cube = tries[-1][0]
    for candidate, accepted in reversed(tries):
        cube = jnp.where(accepted, candidate, cube)
    uniform = _uniform(_word(seed, 2 * _TRIES), dtype)
    boost = jnp.where(boosted, _log(uniform) / concentration, 0)
    draw = jnp.maximum(d * cube * jnp.exp(boost), jnp.finfo(dtype).tiny)
    return jnp.where(valid, draw, jnp.nan)


def _try(seed: Seed, index: int, d: Draws) -> tuple[Draws, Bool[Array, "..."]]:
    """One try of Marsaglia and Tsang's: v, held above 0, and whether it is accepted."""
    z = _normal(_word(seed, 2 * index), d.dtype)
    u = _uniform(_word(seed, 2 * index + 1), d.dtype)
    base = 1 + z * (1 / jnp.sqrt(9 * d))  # One division for all tries.
    v = jnp.maximum(base, 1e-6) ** 3
    passed = (base > 0) & (_log(u) < z * z / 2 + d * (1 - v + _log(v)))
    return v, passed | (d > _ALWAYS_ACCEPT)


def _poisson(word: Words, rate: Draws) -> Draws:
    """The Poisson quantile of each word."""
    valid = (rate >= 0) & (rate < jnp.inf)
    # Each branch sees a harmless rate where the other is taken.
    small = valid & (rate <= _THRESHOLD)
    low, high = jnp.where(small, rate, 0), jnp.where(valid & ~small, rate, _THRESHOLD)
    summed = _sum_terms(word, jnp.exp(-low), lambda k: low * (1 / k))
    expanded = _cornish_fisher(word, high, jnp.zeros_like(high))
    return jnp.where(valid, jnp.where(small, summed, expanded), jnp.nan)


def _negative_binomial(seed: Seed, mean: Draws, overdispersion: Draws) -> Draws:
    """Poisson draws at gamma rates, from the words after the gamma draws'."""
    floored = jnp.maximum(overdispersion, _LEAST_OVERDISPERSION)
    factor = jnp.where(overdispersion >= 0, floored * _gamma(seed, 1 / floored), jnp.nan)
    return _poisson(_word(seed, 2 * _TRIES + 1), mean * factor)


def _binomial(word: Words, total: Draws, probability: Draws) -> Draws:
    """The binomial quantile of each word (of the failures, for a probability above 1/2)."""
    rare = jnp.minimum(probability, 1 - probability)
    valid = (total >= 0) & (total < jnp.inf) & (rare >= 0)
    rare = jnp.where(valid, rare, 0)
    small = valid & (total * rare <= _THRESHOLD)
    trials, odds = jnp.where(small, total, 0), rare / (1 - rare)
    none = jnp.exp(trials * _log_complement(rare))
    # (n - k + 1) odds / k, in two operations.
    most = (trials + 1) * odds
    summed = _sum_terms(word, none, lambda k: jnp.maximum(most * (1 / k) - odds, 0))
    expanded = _cornish_fisher(word, jnp.where(valid & ~small, total * rare, _THRESHOLD), rare)
    count = jnp.minimum(jnp.where(small, summed, expanded), total)
    return jnp.where(valid, jnp.where(probability > 0.5, total - count, count), jnp.nan)


def _sum_terms(word: Words, first: Draws, ratio: Callable[[int], Draws]) -> Draws:
    """Count by exact inversion: P(0) is `first` and P(k) / P(k - 1) is `ratio(k)`."""
    # P(count >= k) = P(k) (1 + ratio(k + 1) (1 + ...)): summed from the far end, the tail keeps its
    # relative precision, and so do rare events.
    sums = [jnp.ones_like(first)]
    for k in range(_TERMS, 1, -1):
        sums.append(1 + ratio(k) * sums[-1])
    tails, term = [], first
    for k in range(1, _TERMS + 1):
        term = term * ratio(k)
        tails.append(term * sums[-k])
    return _count_above(_uniform(~word, first.dtype), tails)


def _count_above(level: Draws, falling: list[Draws]) -> Draws:
    """How many of some falling values lie above a positive level, by bisection."""
    if not falling:
        return jnp.zeros_like(level)
    middle = len(falling) // 2
    many = level < falling[middle]
    early, late = falling[:middle], falling[middle + 1 :]
    late = late + [jnp.zeros_like(level)] * (len(early) - len(late))
    rest = [jnp.where(many, b, a) for a, b in zip(early, late, strict=True)]
    return jnp.where(many, middle + 1, 0) + _count_above(level, rest)


def _cornish_fisher(word: Words, mean: Draws, probability: Draws) -> Draws:
    """Quantile of a binomial count of this mean; probability 0 is the Poisson limit."""
    w = _normal(word, mean.dtype)
    lean, variance = 1 - 2 * probability, mean * (1 - probability)
    shape = 6 * probability * (1 - probability)
    # On a lattice the expansion holds half-way between the integers, for these cumulants.
    corrected = variance - 1 / 12
    deviation = jnp.sqrt(corrected)
    skew = variance * lean / (corrected * deviation)
    kurtosis = (variance * (1 - shape) + 1 / 120) / corrected**2
    fifth = variance * lean * (1 - 2 * shape) / (corrected**2 * deviation)
    w2 = w * w
    quantile = w + skew * (w2 - 1) / 6
    quantile += w * (kurtosis * (w2 - 3) / 24 - skew**2 * (2 * w2 - 5) / 36)
    quantile += fifth * ((w2 - 6) * w2 + 3) / 120 + skew**3 * ((12 * w2 - 53) * w2 + 17) / 324
    quantile -= skew * kurtosis * ((w2 - 5) * w2 + 2) / 24
    return jnp.maximum(jnp.ceil(mean + (deviation * quantile - 0.5)), 0)
