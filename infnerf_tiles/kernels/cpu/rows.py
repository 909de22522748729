"""Rows and weights of many cells side by side, and rows of features as vectors, for numba kernels.

Samples are handled in chunks, whose cells are written down first: `places` int32 [8, CHUNK] of the vertices, x fastest,
counted in values (row times features) from the grid's first row on, and `weights` float32 [5, CHUNK]: the products of
the shares along y and z, then the share of the upper vertex along x. In a dense grid neighbours along x lie side by
side and the others at fixed distances, so the lowest vertex's place is enough.

How many features there are and how many planes of a cell, 1 or 2, kernels know by the lengths of two tuples, `width`
and `planes`: constants in a closure with compiled functions would have every process compile them anew.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from infnerf_tiles.kernels.cpu.vectors import Vector

LANES = 16
"""Samples whose rows and weights are computed as one vector."""
CHUNK = 128
"""Samples whose rows and weights are computed before they are used; what they take stays in the first-level cache."""
_PRIMES = (1, 2654435761, 805459861)
"""Of the hash of 2x2x2 blocks, after Teschner et al. 2003."""
_WHOLE = ir.IntType(64)
_intrinsic: Any = intrinsic  # its own type says that a call takes the typing context too


def _data(context: Any, builder: Any, signature: Any, args: Any, k: int) -> Any:
    """Pointer to what argument k, a contiguous array, holds."""
    return context.make_array(signature.args[k])(context, builder, args[k]).data


def _rows_on(builder: Any, data: Any, rows: Any, features: int) -> Any:
    """Pointer to the row that lies `rows` int64 rows behind `data`."""
    return builder.gep(data, [builder.mul(rows, _WHOLE(features))])


def _signed(value: int) -> int:
    """The low 32 bits as a signed integer."""
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)


def _hash_codes(vertex: Vector, axis: int) -> tuple[Vector, Vector]:
    """Codes of a cell's lower and upper vertex along one axis; a row is the low bits of their exclusive or."""
    odd, prime = vertex & 1, _signed(_PRIMES[axis] << 3)
    block = (vertex >> 1) * prime
    # above an odd vertex the next block begins
    above = block.where_set(odd, block + prime)
    return block | (odd << axis), above | ((odd ^ 1) << axis)


def _writes_cells(dense: bool) -> Any:
    """Write down the cells of samples m .. m+LANES-1 as numbers j .. j+LANES-1 of a chunk.

    position: float32 [M, 3]. rest: the last samples where there are fewer than LANES, float32 [LANES * 3].
    shape: scale of positions (float32), highest cell, mask of a cell within its node, vertices along an edge, mask of
    rows (all int32). planes: two, or one for the vertices alone whose index along z has the parity given.
    """

    @intrinsic
    def cells(typingctx, position, rest, m, shape, parity, places, weights, j, width, planes):  # type: ignore[no-untyped-def]
        whole, features, both = types.int64, width.count, planes.count == 2
        signature = types.void(position, rest, whole, shape, types.int32, places, weights, whole, width, planes)

        def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
            scale, highest, wrap, edge, mask = (builder.extract_value(args[3], k) for k in range(5))
            here = _rows_on(builder, _data(context, builder, signature, args, 0), args[2], 3)
            num = context.make_array(signature.args[0])(context, builder, args[0]).nitems
            behind = builder.mul(builder.add(args[2], _WHOLE(LANES)), _WHOLE(3))
            fits = builder.icmp_signed("<=", behind, num)
            source = builder.select(fits, here, _data(context, builder, signature, args, 1))
            beside = Vector.load(builder, source, 3 * LANES)
            vertex, lower, upper = [], [], []
            for axis in range(3):
                scaled = beside.lanes([3 * k + axis for k in range(LANES)]) * scale
                cell = scaled.truncated().at_most(highest)
                upper.append(scaled - cell.as_float())
                lower.append(upper[axis] * -1.0 + 1.0)
                vertex.append(cell & wrap)
            shares_z = [lower[2], upper[2]]
            # whether the vertex of this parity is the upper one
            flip = (vertex[2] ^ args[4]) & 1
            if not both:
                shares_z = [lower[2].where_set(flip, upper[2])]
            if dense:
                z = vertex[2] if both else vertex[2] + flip
                rows = [(z * edge + vertex[1]) * edge + vertex[0]]
            else:
                x, y, z_codes = (_hash_codes(vertex[axis], axis) for axis in range(3))
                chosen = z_codes if both else (z_codes[0].where_set(flip, z_codes[1]),)
                rows = [(a ^ b ^ c) & mask for c in chosen for b in y for a in x]
            shares = [y_share * z_share for z_share in shares_z for y_share in (lower[1], upper[1])] + [upper[0]]
            for k, columns in ((5, [row * features for row in rows]), (6, shares)):
                data = _data(context, builder, signature, args, k)
                for n, column in enumerate(columns):
                    column.store(builder.gep(data, [builder.add(args[7], _WHOLE(n * CHUNK))]))
            return context.get_dummy_value()

        return signature, build

    return cells


def _at(context: Any, builder: Any, signature: Any, args: Any, k: int, lines: int) -> list[Any]:
    """Number j of a chunk in each line of `places` (k = 0) or `weights` (k = 1); `args` end with these, j and edge."""
    data = _data(context, builder, signature, args, len(args) - 4 + k)
    return [builder.load(builder.gep(data, [builder.add(args[-2], _WHOLE(n * CHUNK))])) for n in range(lines)]


def _places(
    context: Any, builder: Any, signature: Any, args: Any, features: int, planes: int, dense: bool
) -> list[list[Any]]:
    """Places int64 of a sample's vertices, one list for each pair of neighbours along x: one place if side by side."""
    found = _at(context, builder, signature, args, 0, 1 if dense else 4 * planes)
    wide = [builder.zext(place, _WHOLE) for place in found]
    if not dense:
        return [wide[n : n + 2] for n in range(0, 4 * planes, 2)]
    along_y = builder.mul(args[-1], _WHOLE(features))
    along_z = builder.mul(along_y, args[-1])
    pairs = [wide[0], builder.add(wide[0], along_y)]
    return [[place] for place in pairs] + [[builder.add(place, along_z)] for place in pairs if planes == 2]


@_intrinsic
def fetch_rows(typingctx, table, first, places, weights, j, edge, width, planes):  # type: ignore[no-untyped-def]
    """Ask for the vertices of sample j of a chunk, in a hashed table, ahead of their use."""
    features, count = width.count, planes.count
    signature = types.void(table, types.int64, places, weights, types.int64, types.int64, width, planes)

    def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
        base = _rows_on(builder, _data(context, builder, signature, args, 0), args[1], features)
        small, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, small, small, small])
        call = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        for pair in _places(context, builder, signature, args[:-2], features, count, False):
            for place in pair:
                # to read, into all caches, data
                hints = [small(0), small(3), small(1)]
                builder.call(call, [builder.bitcast(builder.gep(base, [place]), byte), *hints])
        return context.get_dummy_value()

    return signature, build


def _gathers_rows(dense: bool) -> Any:
    """out[m] += weight * sum over the vertices of sample j of a chunk; `first` is the grid's first row in `table`."""

    @intrinsic
    def gather(typingctx, out, m, weight, table, first, places, weights, j, edge, width):  # type: ignore[no-untyped-def]
        whole, features = types.int64, width.count
        signature = types.void(out, whole, types.float32, table, whole, places, weights, whole, whole, width)

        def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
            base = _rows_on(builder, _data(context, builder, signature, args, 3), args[4], features)
            pairs = _places(context, builder, signature, args[:-1], features, 2, dense)
            *products, share = _at(context, builder, signature, args[:-1], 1, 5)
            sums: list[Vector] = []
            for pair, product in zip(pairs, products, strict=True):
                lanes = 2 * features // len(pair)
                values = [Vector.load(builder, builder.gep(base, [place]), lanes) * product for place in pair]
                sums = [one + more for one, more in zip(values, sums, strict=True)] if sums else values
            if dense:
                sums = [sums[0].lanes(list(range(x * features, (x + 1) * features))) for x in range(2)]
            found = (sums[1] - sums[0]) * share + sums[0]
            target = _rows_on(builder, _data(context, builder, signature, args, 0), args[1], features)
            (found * args[2] + Vector.load(builder, target, features)).store(target)
            return context.get_dummy_value()

        return signature, build

    return gather


def _scatters_rows(dense: bool) -> Any:
    """table += weight * gradient[m] at the vertices of sample j of a chunk, whose blocks are marked."""

    @intrinsic
    def scatter(typingctx, gradient, m, weight, marks, table, first, places, weights, j, edge, width, planes):  # type: ignore[no-untyped-def]
        whole, real, features, count = types.int64, types.float32, width.count, planes.count
        signature = types.void(
            gradient, whole, real, marks, table, whole, places, weights, whole, whole, width, planes
        )  # fmt: skip

        def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
            source = _rows_on(builder, _data(context, builder, signature, args, 0), args[1], features)
            # grids begin with whole blocks
            mark = builder.gep(_data(context, builder, signature, args, 3), [builder.lshr(args[5], _WHOLE(3))])
            base = _rows_on(builder, _data(context, builder, signature, args, 4), args[5], features)
            pairs = _places(context, builder, signature, args[:-2], features, count, dense)
            *products, share = _at(context, builder, signature, args[:-2], 1, 2 * count + 1)
            towards = Vector.load(builder, source, features) * args[2]
            upper = towards * share
            parts = [towards - upper, upper]
            if dense:
                parts = [parts[0].lanes(list(range(2 * features)), parts[1])]
            for pair, product in zip(pairs, products, strict=True):
                for place, part in zip(pair, parts, strict=True):
                    target = builder.gep(base, [place])
                    (part * product + Vector.load(builder, target, part.count)).store(target)
                for place in [pair[0], builder.add(pair[0], _WHOLE(features))] if dense else pair:
                    block = builder.udiv(place, _WHOLE(8 * features))
                    builder.store(ir.IntType(8)(1), builder.gep(mark, [block]))
            return context.get_dummy_value()

        return signature, build

    return scatter


write_dense_cells, write_hashed_cells = _writes_cells(True), _writes_cells(False)
gather_dense_rows, gather_hashed_rows = _gathers_rows(True), _gathers_rows(False)
scatter_dense_rows, scatter_hashed_rows = _scatters_rows(True), _scatters_rows(False)
