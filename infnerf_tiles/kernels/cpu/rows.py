"""Rows of feature tables as one vector each, for numba kernels: what its compiler does not find by itself.

numba's cache of a kernel does not see changes here: touch the files that use them.
"""

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _vector_pointer(builder: Any, array: Any, row: Any, features: int) -> tuple[Any, Any]:
    """Pointer to a row of a contiguous float32 array as one vector."""
    vector = ir.VectorType(ir.FloatType(), features)
    first = builder.mul(row, ir.Constant(row.type, features))
    return builder.bitcast(builder.gep(array, [first]), vector.as_pointer()), vector


def _splat(builder: Any, scalar: Any, vector: Any) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    order = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), order)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def _corners(context: Any, builder: Any, signature: Any, args: Any, array: int, corners: int, chunk: int) -> Any:
    """(data pointer of argument `array`, rows and weights of sample j's vertices) for the two intrinsics below."""
    kind = {k: signature.args[k] for k in range(len(args))}
    data = context.make_array(kind[array])(context, builder, args[array]).data
    first, rows, weights, j = args[array + 1 : array + 5]
    row_at = context.make_array(kind[array + 2])(context, builder, rows).data
    weight_at = context.make_array(kind[array + 3])(context, builder, weights).data
    found = []
    for corner in range(corners):
        place = builder.add(j, ir.Constant(j.type, corner * chunk))
        row = builder.sext(builder.load(builder.gep(row_at, [place])), first.type)
        found.append((builder.add(first, row), builder.load(builder.gep(weight_at, [place]))))
    return data, found


@functools.cache
def gather_rows(features: int, corners: int, chunk: int) -> Any:
    """out[m] += sum over the vertices of weight * table[first + row], features as one vector.

    Rows int32 and weights float32 are [corners, chunk]; all arrays are contiguous.
    """

    @intrinsic
    def gather(typingctx, out, m, table, first, rows, weights, j):  # type: ignore[no-untyped-def]
        signature = types.void(out, types.int64, table, types.int64, rows, weights, types.int64)

        def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
            target = context.make_array(signature.args[0])(context, builder, args[0]).data
            pointer, vector = _vector_pointer(builder, target, args[1], features)
            data, found = _corners(context, builder, signature, args, 2, corners, chunk)
            total = builder.load(pointer, align=4)
            for row, weight in found:
                value = builder.load(_vector_pointer(builder, data, row, features)[0], align=4)
                total = _multiply_add(builder, _splat(builder, weight, vector), value, total)
            builder.store(total, pointer, align=4)
            return context.get_dummy_value()

        return signature, build

    return gather


@functools.cache
def scatter_rows(features: int, corners: int, chunk: int) -> Any:
    """table[first + row] += weight * gradient[m] at the vertices, features as one vector; their blocks are marked."""

    @intrinsic
    def scatter(typingctx, gradient, m, marks, table, first, rows, weights, j):  # type: ignore[no-untyped-def]
        signature = types.void(gradient, types.int64, marks, table, types.int64, rows, weights, types.int64)

        def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
            source = context.make_array(signature.args[0])(context, builder, args[0]).data
            mark = context.make_array(signature.args[2])(context, builder, args[2]).data
            pointer, vector = _vector_pointer(builder, source, args[1], features)
            towards = builder.load(pointer, align=4)
            data, found = _corners(context, builder, signature, args, 3, corners, chunk)
            for row, weight in found:
                place = _vector_pointer(builder, data, row, features)[0]
                value = builder.load(place, align=4)
                value = _multiply_add(builder, _splat(builder, weight, vector), towards, value)
                builder.store(value, place, align=4)
                block = builder.lshr(row, ir.Constant(row.type, 3))
                builder.store(ir.Constant(ir.IntType(8), 1), builder.gep(mark, [block]))
            return context.get_dummy_value()

        return signature, build

    return scatter
