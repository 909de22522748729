"""Rows and weights of many cells side by side, and feature rows as vectors, for numba kernels.

numba's cache of a kernel does not see changes here: touch the files that use them.

Places of vertices are counted in values, row times features, from a grid's first row on. Weights come as the products
along y and z, and the share of the upper vertices along x, which lie beside the lower ones in a dense grid.
"""

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from infnerf_tiles.kernels.cpu.vectors import Vector, splat

LANES = 16
"""Samples whose rows and weights are computed as one vector."""
CHUNK = 64
"""Samples whose rows and weights are computed before they are used; what they take stays in the first-level cache."""
_PRIMES = (1, 2654435761, 805459861)
"""Of the hash of 2x2x2 blocks, after Teschner et al. 2003."""


def _data(context: Any, builder: Any, signature: Any, args: Any, k: int) -> Any:
    return context.make_array(signature.args[k])(context, builder, args[k]).data


def _constant(value: int) -> Any:
    return ir.Constant(ir.IntType(64), value)


def _signed(value: int) -> int:
    """The low 32 bits as a signed integer."""
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)


def _hashed_codes(vertex: Vector, axis: int) -> tuple[Vector, Vector]:
    """Codes of a cell's lower and upper vertex along one axis; a row is the low bits of their exclusive or."""
    odd, prime = vertex & 1, _signed(_PRIMES[axis] << 3)
    block = (vertex >> 1) * prime
    # the upper vertex of an odd one lies in the next block
    above = block.where_set(odd, block + prime)
    return block | (odd << axis), above | ((odd ^ 1) << axis)


@functools.cache
def cells_of(features: int, planes: int, dense: bool) -> Any:
    """Places int32 and weights float32 of LANES samples' cells.

    planes: 2, or 1 for the vertices whose index along z has one parity.
    """

    @intrinsic
    def cells(typingctx, position, rest, m, shape, parity, places, weights, j):  # type: ignore[no-untyped-def]
        whole, small = types.int64, types.int32
        signature = types.void(position, rest, whole, shape, small, places, weights, whole)

        def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scale, highest, wrap, edge, mask = (builder.extract_value(args[3], k) for k in range(5))
            num = context.make_array(signature.args[0])(context, builder, args[0]).nitems
            whole = builder.icmp_signed("<=", builder.mul(builder.add(args[2], _constant(LANES)), _constant(3)), num)
            here = builder.gep(_data(context, builder, signature, args, 0), [builder.mul(args[2], _constant(3))])
            source = builder.select(whole, here, _data(context, builder, signature, args, 1))
            beside = Vector.load(builder, source, 3 * LANES)
            vertex, upper, lower = [], [], []
            for axis in range(3):
                scaled = beside.lanes([3 * k + axis for k in range(LANES)]) * scale
                corner = scaled.truncated().at_most(highest)
                upper.append(scaled - corner.as_float())
                lower.append(upper[axis] * -1.0 + 1.0)
                vertex.append(corner & wrap)
            along_z = [lower[2], upper[2]]
            flip = (vertex[2] ^ args[4]) & 1
            if planes == 1:
                along_z = [lower[2].where_set(flip, upper[2])]
            found: list[Vector] = []
            if dense:
                z = vertex[2] + flip if planes == 1 else vertex[2]
                found = [(z * edge + vertex[1]) * edge + vertex[0]]
            else:
                codes = [_hashed_codes(vertex[axis], axis) for axis in range(3)]
                if planes == 1:
                    codes[2] = (codes[2][0].where_set(flip, codes[2][1]),) * 2
                for plane in range(planes):
                    for y in range(2):
                        yz = codes[1][y] ^ codes[2][plane]
                        found += [(yz ^ codes[0][x]) & mask for x in range(2)]
            where = _data(context, builder, signature, args, 5)
            for k, row in enumerate(found):
                (row * features).store(builder.gep(where, [builder.add(args[7], _constant(k * CHUNK))]))
            shares = [along_y * z for z in along_z for along_y in (lower[1], upper[1])] + [upper[0]]
            where = _data(context, builder, signature, args, 6)
            for k, share in enumerate(shares):
                share.store(builder.gep(where, [builder.add(args[7], _constant(k * CHUNK))]))
            return context.get_dummy_value()

        return signature, build

    return cells


def _pairs(
    context: Any, builder: Any, signature: Any, args: Any, features: int, planes: int, dense: bool
) -> tuple[list[list[Any]], list[Any], Any]:
    """(places int64 of the vertices of each row along x, product along y and z of each such row, share along x).

    `args` are from `places` on: places, weights, j, edge. In a dense grid a row along x is one place for both vertices.
    """
    k = len(args) - 4
    j, edge = args[k + 2], args[k + 3]
    where, shares = (_data(context, builder, signature, args, k + n) for n in range(2))

    def at(data: Any, n: int) -> Any:
        return builder.load(builder.gep(data, [builder.add(j, _constant(n * CHUNK))]))

    whole = ir.IntType(64)
    if dense:
        first, step = builder.zext(at(where, 0), whole), builder.mul(edge, _constant(features))
        layer = builder.mul(step, edge)
        corners = [[first], [builder.add(first, step)]]
        corners += [[builder.add(one, layer)] for (one,) in corners] if planes == 2 else []
    else:
        corners = [[builder.zext(at(where, 2 * n + x), whole) for x in range(2)] for n in range(2 * planes)]
    return corners, [at(shares, n) for n in range(2 * planes)], at(shares, 2 * planes)


@functools.cache
def gather_rows(features: int, dense: bool) -> Any:
    """out[m] += weight * features of sample j of a chunk."""

    @intrinsic
    def gather(typingctx, out, m, weight, table, first, places, weights, j, edge):  # type: ignore[no-untyped-def]
        whole = types.int64
        signature = types.void(out, whole, types.float32, table, whole, places, weights, whole, whole)

        def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
            width = _constant(features)
            base = builder.gep(_data(context, builder, signature, args, 3), [builder.mul(args[4], width)])
            corners, products, share = _pairs(context, builder, signature, args, features, 2, dense)
            sums: list[Vector] = []
            for places, product in zip(corners, products, strict=True):
                lanes = features * 2 // len(places)
                values = [Vector.load(builder, builder.gep(base, [place]), lanes) * product for place in places]
                sums = [one + more for one, more in zip(sums, values, strict=True)] if sums else values
            if dense:
                sums = [sums[0].lanes(list(range(x * features, (x + 1) * features))) for x in range(2)]
            target = builder.gep(_data(context, builder, signature, args, 0), [builder.mul(args[1], width)])
            found = (sums[1] - sums[0]) * share + sums[0]
            (found * args[2] + Vector.load(builder, target, features)).store(target)
            return context.get_dummy_value()

        return signature, build

    return gather


@functools.cache
def scatter_rows(features: int, planes: int, dense: bool) -> Any:
    """table += weight * gradient[m] at the vertices of sample j of a chunk; their blocks are marked."""

    @intrinsic
    def scatter(typingctx, gradient, m, weight, marks, table, first, places, weights, j, edge):  # type: ignore[no-untyped-def]
        whole = types.int64
        signature = types.void(gradient, whole, types.float32, marks, table, whole, places, weights, whole, whole)

        def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
            width = _constant(features)
            source = builder.gep(_data(context, builder, signature, args, 0), [builder.mul(args[1], width)])
            base = builder.gep(_data(context, builder, signature, args, 4), [builder.mul(args[5], width)])
            mark = builder.gep(
                _data(context, builder, signature, args, 3), [builder.lshr(args[5], _constant(3))]
            )
            corners, products, share = _pairs(context, builder, signature, args, features, planes, dense)
            towards = Vector.load(builder, source, features) * args[2]
            above = towards * share
            parts = [towards - above, above]
            if dense:
                parts = [parts[0].lanes(list(range(2 * features)), parts[1])]
            for places, product in zip(corners, products, strict=True):
                for place, part in zip(places, parts, strict=True):
                    target = builder.gep(base, [place])
                    (part * product + Vector.load(builder, target, features * len(parts[0:1]) * (2 if dense else 1))).store(target)
                touched = [places[0], builder.add(places[0], width)] if dense else places
                for place in touched:
                    block = builder.udiv(place, _constant(8 * features))
                    builder.store(ir.Constant(ir.IntType(8), 1), builder.gep(mark, [block]))
            return context.get_dummy_value()

        return signature, build

    return scatter
