"""Rare arguments: what a vector loop computes for single elements, and seldom.

A branch in a loop keeps LLVM from vectorising it, and computing everything for every element costs
all of them what few need. `beyond(x, limit, usual, name, formula)` is a call, which stands in the
loop as one operation. In scalar code it is a function with a branch; LLVM is told by the attribute
`vector-function-abi-variant` which function does the same for a vector: that one asks whether any
of its elements is rare, and only then goes through them one by one.

The functions are `linkonce_odr`: of equal ones in linked modules one is kept.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from codegen.runtime.lanes import Lane

_I8 = ir.IntType(8)
_I32 = ir.IntType(32)
# Bits of the vectors that a loop may use: SSE and NEON, AVX, AVX-512.
_VECTORS = (128, 256, 512)
_PURE = ("readnone", "nounwind")
_USED = "llvm.compiler.used"


def beyond(
    x: Lane, limit: float, usual: Lane, name: str, formula: Callable[[Lane], Lane]
) -> Lane:
    """The value `usual` where |x| <= limit or x is NaN, else `formula` of x in float64.

    Args:
        x:       a float.
        limit:   of |x|.
        usual:   a value of x's type.
        name:    of the function; the same formula under the same name.
        formula: float64 -> float64, for single elements; it may be slow.
    """
    rescue = _rescue(x, limit, name, formula)
    return Lane(x.builder, x.builder.call(rescue, [x.value, usual.value]))


def _function(
    module: ir.Module, name: str, kind: ir.Type, arity: int, *attributes: str
) -> ir.Function:
    """A new function of `arity` arguments of one type, without effects."""
    made = ir.Function(module, ir.FunctionType(kind, [kind] * arity), name)
    made.linkage = "linkonce_odr"
    for attribute in (*_PURE, *attributes):
        made.attributes.add(attribute)
    _add_text(made, "willreturn")
    return made


def _add_text(function: ir.Function, attribute: str) -> None:
    """An attribute that llvmlite does not know."""
    set.add(function.attributes, attribute)


def _slow(module: ir.Module, name: str, formula: Callable[[Lane], Lane]) -> ir.Function:
    """The formula as a function of a float64."""
    symbol = f"symgrad_{name}_slow"
    if symbol not in module.globals:
        made = _function(module, symbol, ir.DoubleType(), 1, "noinline")
        builder = ir.IRBuilder(made.append_basic_block())
        builder.ret(formula(Lane(builder, made.args[0])).value)
    found: ir.Function = module.globals[symbol]
    return found


def _rescue(x: Lane, limit: float, name: str, formula: Callable[[Lane], Lane]) -> ir.Function:
    """The function of `beyond` for one element, which has variants for vectors."""
    module, kind, width = x.builder.module, x.value.type, x.width
    symbol = f"symgrad_{name}_f{width}"
    if symbol in module.globals:
        known: ir.Function = module.globals[symbol]
        return known
    one = _one(x, limit, f"{symbol}_one", _slow(module, name, formula))
    variants = [_variant(one, limit, f"{symbol}_x{n}", n) for n in (b // width for b in _VECTORS)]
    counts = [v.args[0].type.count for v in variants]
    mappings = ",".join(
        f"_ZGV_LLVM_N{n}vv_{symbol}({v.name})" for n, v in zip(counts, variants, strict=True)
    )
    _keep(module, variants)
    made = _function(module, symbol, kind, 2, "noinline")
    _add_text(made, f'"vector-function-abi-variant"="{mappings}"')
    builder = ir.IRBuilder(made.append_basic_block())
    builder.ret(builder.call(one, made.args))
    return made


def _one(x: Lane, limit: float, symbol: str, slow: ir.Function) -> ir.Function:
    """The same without variants, or LLVM would make vectors of the loop over a vector again."""
    made = _function(slow.module, symbol, x.value.type, 2, "noinline")
    builder = ir.IRBuilder(made.append_basic_block())
    given, usual = (Lane(builder, argument) for argument in made.args)
    with builder.if_then((given.call("llvm.fabs") > limit).value, likely=False):
        exact = Lane(builder, builder.call(slow, [given.as_double().value]))
        builder.ret(exact.rounded_to(x).value)
    builder.ret(usual.value)
    return made


def _variant(one: ir.Function, limit: float, symbol: str, n: int) -> ir.Function:
    """The same for vectors of n elements: a test, and seldom a call."""
    kind = ir.VectorType(one.args[0].type, n)
    made = _function(one.module, symbol, kind, 2, "alwaysinline")
    builder = ir.IRBuilder(made.append_basic_block())
    given, usual = made.args
    size = builder.call(_absolute(one.module, kind), [given])
    rare = builder.fcmp_ordered(">", size, ir.Constant(kind, [limit] * n))
    mask = builder.bitcast(rare, ir.IntType(n))
    with builder.if_then(builder.icmp_unsigned("!=", mask, mask.type(0)), likely=False):
        builder.ret(builder.call(_one_by_one(one, kind), [given, usual]))
    builder.ret(usual)
    return made


def _absolute(module: ir.Module, kind: ir.VectorType) -> ir.Function:
    short = "f32" if isinstance(kind.element, ir.FloatType) else "f64"
    symbol = f"llvm.fabs.v{kind.count}{short}"
    if symbol not in module.globals:
        ir.Function(module, ir.FunctionType(kind, [kind]), symbol)
    found: ir.Function = module.globals[symbol]
    return found


def _one_by_one(one: ir.Function, kind: ir.VectorType) -> ir.Function:
    """The function `one` of the elements of a vector in turn."""
    made = _function(one.module, f"{one.name}_by_one{kind.count}", kind, 2, "noinline")
    builder = ir.IRBuilder(made.append_basic_block("entry"))
    places = [builder.alloca(kind) for _ in range(2)]
    for place, argument in zip(places, made.args, strict=True):
        builder.store(argument, place)
    start = builder.block
    loop, end = made.append_basic_block("loop"), made.append_basic_block("end")
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(_I32)
    k.add_incoming(_I32(0), start)
    row = ir.ArrayType(kind.element, kind.count).as_pointer()
    given, usual = (builder.gep(builder.bitcast(p, row), [_I32(0), k]) for p in places)
    builder.store(builder.call(one, [builder.load(given), builder.load(usual)]), usual)
    following = builder.add(k, _I32(1))
    k.add_incoming(following, loop)
    builder.cbranch(builder.icmp_unsigned("<", following, _I32(kind.count)), loop, end)
    builder.position_at_end(end)
    builder.ret(builder.load(places[1]))
    return made


def _keep(module: ir.Module, functions: list[ir.Function]) -> None:
    """Keep functions that only an attribute names: LLVM looks for them when it vectorises."""
    pointer = _I8.as_pointer()
    names = [function.bitcast(pointer) for function in functions]
    used = module.globals.get(_USED)
    if used is None:
        used = ir.GlobalVariable(module, ir.ArrayType(pointer, 0), _USED)
        used.linkage = "appending"
        used.section = "llvm.metadata"
    else:
        names = [*used.initializer.constant, *names]
    used.value_type = ir.ArrayType(pointer, len(names))
    used.type = used.value_type.as_pointer()
    used.initializer = ir.Constant(used.value_type, names)
