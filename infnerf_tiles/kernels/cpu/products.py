"""Products of small matrices for numba kernels, in registers: what its compiler does not find by itself.

Factors are float32 or, where the processor multiplies those faster, bfloat16: an int32 array holds two of them in each
element, neighbours along the terms of a sum. Sums are float32 in both cases, taken term by term.

Shapes are literals rather than closures: what closes over compiled functions is compiled anew by every process.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

BIAS, RELU, PLAIN, MASK, SUM = range(5)
"""What a product starts from and ends with; see `product`."""
_intrinsic: Any = intrinsic  # its own type says that a call takes the typing context too
_INT = ir.IntType(64)
_FLOAT = ir.FloatType()
_SHORT = ir.IntType(16)


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not name."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


@functools.cache
def _target() -> frozenset[str]:
    """What the processor that numba compiles for can do; kernels in its cache belong to one such set."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return frozenset(name[1:] for name in features.split(",") if name.startswith("+"))


def has_pairs() -> bool:
    """Whether this processor sums up products of pairs of bfloat16."""
    return {"avx512bf16", "avx512vl"} <= _target()


def _registers() -> tuple[int, int, int]:
    """(values in a vector, vectors side by side, sums kept at once) that this processor's registers hold."""
    if "avx512f" in _target():
        return 16, 4, 24
    if "avx" in _target():
        return 8, 2, 12
    return (4, 4, 24) if "neon" in _target() else (4, 2, 12)


def _most(number: int, limit: int) -> int:
    """Largest divisor of a number up to a limit."""
    return max(k for k in range(1, limit + 1) if number % k == 0)


class _Rows:
    """A matrix of float32, or of bfloat16 in pairs, within an array."""

    def __init__(self, builder: Any, pointer: Any, pairs: bool):
        self._builder, self.pointer, self.pairs = builder, pointer, pairs

    def moved(self, elements: Any) -> "_Rows":
        offset = elements if isinstance(elements, ir.Value) else ir.Constant(_INT, elements)
        return _Rows(self._builder, self._builder.gep(self.pointer, [offset]), self.pairs)

    def column(self, values: Any) -> "_Rows":
        """As `moved`, by values rather than elements."""
        if not self.pairs:
            return self.moved(values)
        if isinstance(values, int):
            return self.moved(values // 2)
        return self.moved(self._builder.lshr(values, ir.Constant(_INT, 1)))

    def element(self, vector: int) -> Any:
        """The first element in all lanes."""
        kind = ir.VectorType(self.pointer.type.pointee, vector)
        lane, order = ir.IntType(32), ir.VectorType(ir.IntType(32), vector)
        undefined = ir.Constant(kind, ir.Undefined)
        one = self._builder.insert_element(undefined, self._builder.load(self.pointer), ir.Constant(lane, 0))
        return self._builder.shuffle_vector(one, undefined, ir.Constant(order, [0] * vector))

    def raw(self, count: int, kind: Any = None) -> Any:
        """Vector of elements, or of what else lies there."""
        wanted = ir.VectorType(kind or self.pointer.type.pointee, count)
        return self._builder.load(self._builder.bitcast(self.pointer, wanted.as_pointer()), align=4)

    def values(self, count: int) -> Any:
        """Vector of values as float32."""
        if not self.pairs:
            return self.raw(count)
        wide = ir.VectorType(ir.IntType(32), count)
        bits = self._builder.zext(self.raw(count, _SHORT), wide)
        bits = self._builder.shl(bits, ir.Constant(wide, [16] * count))
        return self._builder.bitcast(bits, ir.VectorType(_FLOAT, count))

    def put(self, value: Any) -> None:
        if self.pairs and value.type.element == _FLOAT:
            value = self._builder.fptrunc(value, ir.VectorType(_BFloat(), value.type.count))
        self._builder.store(value, self._builder.bitcast(self.pointer, value.type.as_pointer()), align=4)


def _fused(builder: Any, left: Any, right: Any, total: Any, pairs: bool) -> Any:
    """total + left * right."""
    if not pairs:
        term = builder.fmul(left, right, flags=("contract",))
        return builder.fadd(term, total, flags=("contract",))
    lanes = total.type.count
    kind = ir.VectorType(_BFloat(), 2 * lanes)
    name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}"
    signature = ir.FunctionType(total.type, [total.type, kind, kind])
    dot = cgutils.get_or_insert_function(builder.module, signature, name)
    return builder.call(dot, [total, builder.bitcast(left, kind), builder.bitcast(right, kind)])


def _tile(
    builder: Any, data: tuple[_Rows, ...], shape: tuple[int, int, int], kind: int, terms: int, strides: tuple[int, ...]
) -> None:
    """`rows` x `vectors` vectors of a product, in registers while the terms pass by."""
    a, b, c, e = data
    rows, vectors, lanes = shape
    a_row, a_term, b_term, c_row = strides
    places = [(r, v * lanes) for r in range(rows) for v in range(vectors)]
    zero = ir.Constant(ir.VectorType(_FLOAT, lanes), [ir.Constant(_FLOAT, 0.0)] * lanes)
    if kind in (BIAS, RELU):
        row = {column: e.column(column).values(lanes) for _, column in places[:vectors]}
        start = [row[column] for _, column in places]
    else:
        start = [c.moved(r * c_row).column(k).values(lanes) if kind == SUM else zero for r, k in places]
    before, loop, after = builder.block, builder.append_basic_block("terms"), builder.append_basic_block("summed")
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(_INT)
    k.add_incoming(ir.Constant(_INT, 0), before)
    sums = [builder.phi(zero.type) for _ in places]
    left, right = a.moved(builder.mul(k, ir.Constant(_INT, a_term))), b.moved(builder.mul(k, ir.Constant(_INT, b_term)))
    factors = [right.moved(v * lanes).raw(lanes) for v in range(vectors)]
    found = []
    for r in range(rows):
        factor = left.moved(r * a_row).element(lanes)
        found += [_fused(builder, factor, factors[v], sums[r * vectors + v], a.pairs) for v in range(vectors)]
    following = builder.add(k, ir.Constant(_INT, 1))
    k.add_incoming(following, loop)
    for value, first, more in zip(sums, start, found, strict=True):
        value.add_incoming(first, before)
        value.add_incoming(more, loop)
    builder.cbranch(builder.icmp_signed("<", following, ir.Constant(_INT, terms)), loop, after)
    builder.position_at_end(after)
    for (r, column), value in zip(places, found, strict=True):
        if kind == RELU:  # in this order NaN stays
            value = builder.select(builder.fcmp_ordered("<", value, zero), zero, value)
        if kind == MASK:
            known = e.moved(r * c_row).column(column).values(lanes)
            value = builder.select(builder.fcmp_ordered("<=", known, zero), zero, value)
        c.moved(r * c_row).column(column).put(value)


def _product(
    builder: Any, data: tuple[_Rows, ...], shape: tuple[int, int, int], strides: tuple[int, ...], kind: int
) -> None:
    a, b, c, e = data
    rows, columns, terms = shape
    widest, most_vectors, most_sums = _registers()
    lanes = min(widest, columns)
    vectors = _most(columns // lanes, most_vectors)
    tall = _most(rows, most_sums // vectors)
    with _steps(builder, columns, vectors * lanes) as column, _steps(builder, rows, tall) as row:
        below = builder.mul(row, ir.Constant(_INT, strides[3]))
        here = (
            a.moved(builder.mul(row, ir.Constant(_INT, strides[0]))),
            b.moved(column),
            c.moved(below).column(column),
            e.column(column) if kind in (BIAS, RELU) else e.moved(below).column(column),
        )
        _tile(builder, here, (tall, vectors, lanes), kind, terms, strides)


@contextlib.contextmanager
def _steps(builder: Any, stop: int, step: int) -> Iterator[Any]:
    """A loop over 0, step, ... < stop, unless one turn is all."""
    if step >= stop:
        yield ir.Constant(_INT, 0)
        return
    first, last, more = (ir.Constant(_INT, n) for n in (0, stop, step))
    with cgutils.for_range_slice(builder, first, last, more, _INT) as (index, _):
        yield index


def _paired(builder: Any, source: _Rows, target: _Rows, rows: int, columns: int, row: int) -> None:
    """Put rows of bfloat16, `row` elements apart, into pairs of rows, one such pair in each element."""
    lanes = min(16, columns)
    kind = ir.VectorType(ir.IntType(32), 2 * lanes)
    order = ir.Constant(kind, [k // 2 + lanes * (k % 2) for k in range(2 * lanes)])
    with _steps(builder, rows // 2, 1) as k:
        above = source.moved(builder.mul(k, ir.Constant(_INT, 2 * row)))
        out = target.moved(builder.mul(k, ir.Constant(_INT, columns)))
        for column in range(0, columns, lanes):
            one, two = above.column(column), above.moved(row).column(column)
            out.moved(column).put(builder.shuffle_vector(one.raw(lanes, _SHORT), two.raw(lanes, _SHORT), order))


def _literals(*given: Any) -> list[int] | None:
    if not all(isinstance(value, types.IntegerLiteral) for value in given):
        return None
    return [value.literal_value for value in given]


def _data(context: Any, builder: Any, signature: Any, args: Any, count: int) -> tuple[_Rows, ...]:
    """The arrays and offsets that the arguments begin with."""
    found = []
    for k in range(0, 2 * count, 2):
        array = context.make_array(signature.args[k])(context, builder, args[k])
        found.append(_Rows(builder, builder.gep(array.data, [args[k + 1]]), signature.args[k].dtype == types.int32))
    return tuple(found)


@_intrinsic(prefer_literal=True)
def product(typingctx, a, a_at, b, b_at, c, c_at, e, e_at, rows, columns, terms, a_row, b_term, c_row, kind):  # type: ignore[no-untyped-def]
    """c[r, j] = sum over k of a[r * a_row + k] * b[k * b_term + j], row by row of c.

    Each array is contiguous, float32 or int32 for pairs (of terms in a and b), and taken from its element `_at` on.
    Other arguments are constants and count elements, but for the columns: a power of two or a multiple of 16.
    Kinds: BIAS starts from e[j]; RELU too and takes negative sums as zero; MASK is zero where e[r, j], laid out as c,
    is not positive; SUM adds to c.
    """
    known = _literals(rows, columns, terms, a_row, b_term, c_row, kind)
    if known is None:
        return None
    num_rows, num_columns, num_terms, along_a, along_b, along_c, what = known
    places = (a, types.int64, b, types.int64, c, types.int64, e, types.int64)
    signature = types.void(*places, rows, columns, terms, a_row, b_term, c_row, kind)

    def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
        data = _data(context, builder, signature, args, 4)
        _product(builder, data, (num_rows, num_columns, num_terms), (along_a, 1, along_b, along_c), what)
        return context.get_dummy_value()

    return signature, build


@_intrinsic(prefer_literal=True)
def outer_sum(typingctx, d, d_at, a, a_at, g, g_at, total, total_at, spare, spare_at, samples, out, into, a_row):  # type: ignore[no-untyped-def]
    """g[o, i] += sum over samples of d[s, o] * a[s, i], and total[o] += sum of d[s, o].

    Rows of d follow each other, those of a lie `a_row` elements apart; g and total are float32. `spare` is of the type
    of d and a, samples * (out + into) / 2 + 1 elements.
    """
    known = _literals(samples, out, into, a_row)
    if known is None:
        return None
    num, num_out, num_in, along = known
    places = (d, types.int64, a, types.int64, g, types.int64, total, types.int64, spare, types.int64)
    signature = types.void(*places, samples, out, into, a_row)

    def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
        slopes, values, sums, total, spare = _data(context, builder, signature, args, 5)
        terms, along_values = num, along
        ones = spare.moved(num * (num_out + num_in) // 2)
        one = ir.Constant(_FLOAT, 1.0)
        if slopes.pairs:
            terms, along_values = num // 2, num_in
            one = ir.Constant(ir.IntType(32), 0x3F803F80)
            left, right = spare, spare.moved(num // 2 * num_out)
            _paired(builder, slopes, left, num, num_out, num_out // 2)
            _paired(builder, values, right, num, num_in, along)
            slopes, values = left, right
        builder.store(one, ones.pointer)
        shape = (num_out, num_in, terms)
        _product(builder, (slopes, values, sums, sums), shape, (1, num_out, along_values, num_in), SUM)
        _product(builder, (ones, slopes, total, total), (1, num_out, terms), (0, 0, num_out, num_out), SUM)
        return context.get_dummy_value()

    return signature, build


@_intrinsic(prefer_literal=True)
def convert(typingctx, source, source_at, target, target_at, rows, columns, target_row):  # type: ignore[no-untyped-def]
    """Copy rows of float32 that follow each other to rows of either kind, `target_row` elements apart."""
    known = _literals(rows, columns, target_row)
    if known is None:
        return None
    num, wide, along = known
    signature = types.void(source, types.int64, target, types.int64, rows, columns, target_row)

    def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
        given, taken = _data(context, builder, signature, args, 2)
        lanes = min(_registers()[0], wide)
        with _steps(builder, num, 1) as row:
            above = given.moved(builder.mul(row, ir.Constant(_INT, wide)))
            below = taken.moved(builder.mul(row, ir.Constant(_INT, along)))
            for column in range(0, wide, lanes):
                below.column(column).put(above.moved(column).values(lanes))
        return context.get_dummy_value()

    return signature, build
