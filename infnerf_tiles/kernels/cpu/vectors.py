"""Arithmetic on vectors in LLVM's language, for numba kernels: what its compiler does not find by itself."""

from typing import Any, Self

from llvmlite import ir

_CONTRACT = ("contract",)
"""Products may be fused with sums."""


class Vector:
    """float32 or int32 values side by side; a number or a scalar on the right stands for as many of itself."""

    def __init__(self, builder: Any, value: Any):
        self.builder, self.value = builder, value

    @classmethod
    def load(cls, builder: Any, pointer: Any, lanes: int) -> Self:
        """`lanes` values from a pointer to the first, which needs no alignment of its own."""
        vector = ir.VectorType(pointer.type.pointee, lanes)
        return cls(builder, builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4))

    def store(self, pointer: Any) -> None:
        self.builder.store(self.value, self.builder.bitcast(pointer, self.value.type.as_pointer()), align=4)

    @property
    def count(self) -> int:
        return int(self.value.type.count)

    @property
    def _is_float(self) -> bool:
        return isinstance(self.value.type.element, ir.FloatType)

    def _beside(self, other: Any) -> Any:
        """The right operand of an operation with this one."""
        if isinstance(other, Vector):
            return other.value
        kind = self.value.type
        if isinstance(other, int | float):
            return ir.Constant(kind, [other] * kind.count)
        return _splat(self.builder, other, kind)

    def _with(self, value: Any) -> "Vector":
        return Vector(self.builder, value)

    def _either(self, floats: Any, integers: Any, other: Any) -> "Vector":
        right = self._beside(other)
        return self._with(floats(self.value, right, flags=_CONTRACT) if self._is_float else integers(self.value, right))

    def __add__(self, other: Any) -> "Vector":
        return self._either(self.builder.fadd, self.builder.add, other)

    def __sub__(self, other: Any) -> "Vector":
        return self._either(self.builder.fsub, self.builder.sub, other)

    def __mul__(self, other: Any) -> "Vector":
        return self._either(self.builder.fmul, self.builder.mul, other)

    def __and__(self, other: Any) -> "Vector":
        return self._with(self.builder.and_(self.value, self._beside(other)))

    def __or__(self, other: Any) -> "Vector":
        return self._with(self.builder.or_(self.value, self._beside(other)))

    def __xor__(self, other: Any) -> "Vector":
        return self._with(self.builder.xor(self.value, self._beside(other)))

    def __lshift__(self, other: Any) -> "Vector":
        return self._with(self.builder.shl(self.value, self._beside(other)))

    def __rshift__(self, other: Any) -> "Vector":
        """Zeros come in from above."""
        return self._with(self.builder.lshr(self.value, self._beside(other)))

    def at_most(self, other: Any) -> "Vector":
        """The smaller of two signed integers."""
        right = self._beside(other)
        return self._with(self.builder.select(self.builder.icmp_signed("<", self.value, right), self.value, right))

    def where_set(self, bit: "Vector", other: "Vector") -> "Vector":
        """`other` in the lanes whose `bit` is not 0."""
        chosen = self.builder.icmp_unsigned("!=", bit.value, ir.Constant(bit.value.type, None))
        return self._with(self.builder.select(chosen, other.value, self.value))

    def truncated(self) -> "Vector":
        """Floats as int32."""
        return self._with(self.builder.fptosi(self.value, ir.VectorType(ir.IntType(32), self.count)))

    def as_float(self) -> "Vector":
        """int32 as floats."""
        return self._with(self.builder.sitofp(self.value, ir.VectorType(ir.FloatType(), self.count)))

    def lanes(self, order: list[int], other: "Vector | None" = None) -> "Vector":
        """The lanes of this one and `other`, numbered on, in a new order."""
        kind = ir.VectorType(ir.IntType(32), len(order))
        right = ir.Constant(self.value.type, ir.Undefined) if other is None else other.value
        return self._with(self.builder.shuffle_vector(self.value, right, ir.Constant(kind, order)))


def _splat(builder: Any, scalar: Any, kind: Any) -> Any:
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    order = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), order)
