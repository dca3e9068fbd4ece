"""The language of generated functions, and its compiler.

    function  = def name(name, ..): statement ..
    statement = name = value | name op= value | call | pass | return value | continue
              | for name in range(value, ..): statement .. | while value: statement ..
              | for name in interleaved(number, value, ..): statement ..
              | if value: statement .. else: statement ..
    value     = number | name | name[value, value] | call | value if value else value
              | op value | value op value | value and value | value or value
    call      = name(value, ..), of an intrinsic of Numba, of another such function, or of a dtype

Numba finds types by iteration, for nearly all of Python, and compiles each function twice: alone,
and again in its caller's library. That is about 0.1 s a kernel on one core of an Intel Xeon. In
this part of Python one pass from top to bottom knows every type, since a name has the type of its
first value. So functions are written as LLVM's code straight into the module of the program that
calls them, which LLVM optimises once; Numba sees a call of an intrinsic.

Numbers are Numba's: Python's own are int64 and float64, sums and products of whole numbers are
int64 and do not overflow, divisions are those of floats. Floats of two precisions never meet, nor
floats and whole numbers: the program says each conversion. `and` and `or` take truth values and
evaluate both. A function that returns something returns an int64. `name[i, j]` reads a constant
int64 array.
"""

from __future__ import annotations

import ast
import inspect
import linecache
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.core.extending import _Intrinsic

from codegen.runtime.lanes import Row, converted, each, element_of
from codegen.runtime.loops import interleave, interleaved

if TYPE_CHECKING:
    from numba.core.base import BaseContext
    from numba.core.typing.context import Context
    from numba.core.typing.templates import Signature

    Values = Sequence[ir.Value]
    Typed = tuple[Signature, Callable[..., ir.Value]]

PYTHON_TYPES = {bool: types.boolean, int: types.int64, float: types.float64}
NUMPY_TYPES = {
    np.bool_: types.boolean,
    np.int32: types.int32,
    np.int64: types.int64,
    np.float32: types.float32,
    np.float64: types.float64,
}
# LLVM's instructions for floats, for whole numbers, and for truth values.
ARITHMETIC: dict[type[ast.operator], tuple[str, str, str]] = {
    ast.Add: ("fadd", "add", ""),
    ast.Sub: ("fsub", "sub", ""),
    ast.Mult: ("fmul", "mul", ""),
    ast.Div: ("fdiv", "", ""),
    ast.BitAnd: ("", "and_", "and_"),
    ast.BitOr: ("", "or_", "or_"),
    ast.BitXor: ("", "xor", "xor"),
}
# LLVM avoids vectors of 512 bits unless told. Loops in the nearest cache take 0.55 to 0.75 times as
# long with them (Intel Sapphire Rapids); processors without them do not mind.
WIDE_VECTORS = '"prefer-vector-width"="512"'
NO_OVERFLOW = ("add", "sub", "mul")
RELATIONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip


class Scalar(NamedTuple):
    """A value under construction.

    Fields:
        kind:   its type.
        value:  LLVM's value.
        number: what it is, where the program writes it as a number.
    """

    kind: types.Type
    value: ir.Value
    number: int | float | None = None


class Kernel:
    """A function that programs call as they call an intrinsic of Numba, which it is none of.

    Numba never forgets an intrinsic; a kernel goes with the program that it was made for.
    """

    _prefer_literal = False

    def __init__(self, definition: Callable[..., Typed]) -> None:
        self._defn = definition

    def __call__(self, *arguments: Any) -> Any:
        """Raises: TypeError, since only compiled programs call kernels."""
        raise TypeError("a kernel is called by other kernels only; see codegen/runtime/kernels.py")


def kernel(function: Callable[..., Any]) -> Kernel:
    """What calls `function`, which is compiled when a program first calls it.

    Calls of it are never inlined: alias scopes are numbered for each kernel anew.

    Raises: TypingError from the compilation of a program, for what is not in the language.
    """
    returns = any(isinstance(node, ast.Return) for node in ast.walk(_definition(function)))
    result = types.int64 if returns else types.void

    def typer(typing_context: Context, *kinds: types.Type) -> Typed:
        def emit(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
        ) -> ir.Value:
            name = f"{function.__module__}.{function.__name__}({', '.join(map(str, kinds))})"
            called = builder.module.globals.get(name)
            if called is None:
                tree = _definition(function)
                called = _Writer(context, builder.module, name, function, tree, signature).write()
            value = builder.call(called, arguments)
            return value if returns else context.get_dummy_value()

        return result(*map(types.unliteral, kinds)), emit

    parameters = inspect.signature(function).parameters.values()
    context = inspect.Parameter("typing_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    typer.__signature__ = inspect.Signature([context, *parameters])
    typer.__name__ = function.__name__
    return Kernel(typer)


_trees: dict[str, tuple[list[str], dict[int, ast.FunctionDef]]] = {}


def _definition(function: Callable[..., Any]) -> ast.FunctionDef:
    """The syntax of a function, from the text of its file."""
    code = function.__code__
    lines = linecache.getlines(code.co_filename, function.__globals__)
    if code.co_filename not in _trees or _trees[code.co_filename][0] is not lines:
        _trees.clear()  # one file at a time
        found = {
            min([node.lineno, *(d.lineno for d in node.decorator_list)]): node
            for node in ast.parse("".join(lines)).body
            if isinstance(node, ast.FunctionDef)
        }
        _trees[code.co_filename] = lines, found
    tree = _trees[code.co_filename][1].get(code.co_firstlineno)
    if tree is None:
        raise TypingError(f"{function.__name__}: no source at the top level of {code.co_filename}")
    return tree


class _Writer:
    """Writes one function; `names` that are assigned twice have a place in memory."""

    def __init__(
        self,
        context: BaseContext,
        module: ir.Module,
        name: str,
        function: Callable[..., Any],
        tree: ast.FunctionDef,
        signature: Signature,
    ) -> None:
        self.context, self.tree, self.globals = context, tree, function.__globals__
        returned = context.get_value_type(signature.return_type)
        if signature.return_type == types.void:
            returned = ir.VoidType()
        kinds = [context.get_value_type(kind) for kind in signature.args]
        self.function = ir.Function(module, ir.FunctionType(returned, kinds), name)
        self.function.linkage = "internal"
        for attribute in ("noinline", "nounwind"):
            self.function.attributes.add(attribute)
        set.add(self.function.attributes, WIDE_VECTORS)
        self.entry = self.function.append_basic_block("entry")
        self.builder = ir.IRBuilder(self.function.append_basic_block("body"))
        stored = Counter(
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        )
        self.moving = {name for name, count in stored.items() if count > 1}
        self.names = {
            argument.arg: Scalar(kind, value)
            for argument, kind, value in zip(
                tree.args.args, signature.args, self.function.args, strict=True
            )
        }
        self.moving -= self.names.keys()
        self.places: dict[str, tuple[types.Type, ir.Value]] = {}
        self.loops: list[ir.Block] = []

    def write(self) -> ir.Function:
        body = self.builder.block
        self.block(self.tree.body)
        if not self.builder.block.is_terminated:
            if not isinstance(self.function.ftype.return_type, ir.VoidType):
                raise self.refuse(self.tree, "it may end without a return")
            self.builder.ret_void()
        ir.IRBuilder(self.entry).branch(body)
        return self.function

    def refuse(self, node: ast.AST, why: str) -> TypingError:
        """An error at a place of the program."""
        text = ast.unparse(node).splitlines()[0]
        return TypingError(f"{self.tree.name}, `{text}`: {why}")

    # -- statements --------------------------------------------------------------------------------
    def block(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            write = getattr(self, f"write_{type(statement).__name__}", None)
            if write is None:
                raise self.refuse(statement, "no statement of the language of kernels")
            write(statement)

    def write_Expr(self, statement: ast.Expr) -> None:
        if not isinstance(statement.value, ast.Constant):
            self.value(statement.value)

    def write_Pass(self, statement: ast.Pass) -> None:
        pass

    def write_Assign(self, statement: ast.Assign) -> None:
        target = statement.targets[0]
        if len(statement.targets) != 1 or not isinstance(target, ast.Name):
            raise self.refuse(statement, "one name is assigned at a time")
        self.assign(statement, target.id, self.value(statement.value))

    def write_AugAssign(self, statement: ast.AugAssign) -> None:
        if not isinstance(statement.target, ast.Name):
            raise self.refuse(statement, "one name is assigned at a time")
        name = statement.target.id
        before = self.named(statement, name)
        made = self.combined(statement, statement.op, before, self.value(statement.value))
        self.assign(statement, name, made)

    def assign(self, node: ast.AST, name: str, value: Scalar) -> None:
        if name not in self.moving:
            if name in self.names:
                raise self.refuse(node, f"the argument {name} is assigned")
            self.names[name] = value
            return
        if name not in self.places:
            place = ir.IRBuilder(self.entry).alloca(value.value.type, name=name)
            self.places[name] = (value.kind, place)
        kind, place = self.places[name]
        if value.kind != kind:
            raise self.refuse(node, f"{name} was {kind} before, and is {value.kind} now")
        self.builder.store(value.value, place)

    def write_Return(self, statement: ast.Return) -> None:
        if statement.value is None:
            raise self.refuse(statement, "nothing is returned")
        self.builder.ret(self.converted(self.value(statement.value), types.int64).value)

    def write_If(self, statement: ast.If) -> None:
        test = self.truth(statement.test).value
        with self.builder.if_else(test) as (then, otherwise):
            with then:
                self.block(statement.body)
            with otherwise:
                self.block(statement.orelse)

    def write_For(self, statement: ast.For) -> None:
        """A loop over range(start, stop, step), with the test at the end of each turn."""
        call, target = statement.iter, statement.target
        called = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
        if not isinstance(call, ast.Call) or called not in ("range", interleaved.__name__):
            raise self.refuse(statement, "loops run over range() or interleaved()")
        assert isinstance(target, ast.Name)
        given = [self.converted(self.value(a), types.int64) for a in call.args]
        count = given.pop(0).number if called != "range" else 1
        if type(count) is not int or count < 1 or not 0 < len(given) < 4:
            raise self.refuse(statement, "no bounds, or no number of vectors")
        first, end = given[:2] if len(given) > 1 else (self.literal(0), given[0])
        step = given[2] if len(given) > 2 else self.literal(1)
        if step.number is None or not step.number:
            raise self.refuse(statement, "the step of a loop is a number other than 0")
        goes_on = "<" if step.number > 0 else ">"
        builder = self.builder
        before = builder.block
        turn, again, after = map(builder.append_basic_block, ("turn", "again", "after"))
        builder.cbranch(builder.icmp_signed(goes_on, first.value, end.value), turn, after)
        builder.position_at_end(turn)
        index = builder.phi(first.value.type, name=target.id)
        index.add_incoming(first.value, before)
        self.assign(statement, target.id, Scalar(types.int64, index))
        self.turn(statement.body, again)
        following = builder.add(index, step.value, flags=["nsw"])
        index.add_incoming(following, again)
        back = builder.cbranch(builder.icmp_signed(goes_on, following, end.value), turn, after)
        if count != 1:
            interleave(back, count)
        builder.position_at_end(after)

    def write_While(self, statement: ast.While) -> None:
        builder = self.builder
        again, turn, after = map(builder.append_basic_block, ("again", "turn", "after"))
        builder.branch(again)
        builder.position_at_end(again)
        builder.cbranch(self.truth(statement.test).value, turn, after)
        builder.position_at_end(turn)
        self.turn(statement.body, again)
        builder.position_at_end(after)

    def turn(self, body: Sequence[ast.stmt], again: ir.Block) -> None:
        """One turn of a loop, which ends at the block `again`."""
        self.loops.append(again)
        self.block(body)
        self.loops.pop()
        if not self.builder.block.is_terminated:
            self.builder.branch(again)
        self.builder.position_at_end(again)

    def write_Continue(self, statement: ast.Continue) -> None:
        self.builder.branch(self.loops[-1])

    # -- values ------------------------------------------------------------------------------------
    def value(self, node: ast.expr) -> Scalar:
        make: Callable[[Any], Scalar] | None
        make = getattr(self, f"make_{type(node).__name__}", None)
        if make is None:
            raise self.refuse(node, "no value of the language of kernels")
        return make(node)

    def literal(self, number: float) -> Scalar:
        kind = PYTHON_TYPES[type(number)]
        return Scalar(kind, ir.Constant(self.context.get_value_type(kind), number), number)

    def make_Constant(self, node: ast.Constant) -> Scalar:
        if type(node.value) not in PYTHON_TYPES:
            raise self.refuse(node, "no number")
        return self.literal(node.value)

    def make_Name(self, node: ast.Name) -> Scalar:
        return self.named(node, node.id)

    def named(self, node: ast.AST, name: str) -> Scalar:
        if name in self.places:
            kind, place = self.places[name]
            return Scalar(kind, self.builder.load(place))
        if name in self.names:
            return self.names[name]
        if type(self.globals.get(name)) in PYTHON_TYPES:
            return self.literal(self.globals[name])
        raise self.refuse(node, f"{name} has no value here")

    def make_UnaryOp(self, node: ast.UnaryOp) -> Scalar:
        if isinstance(node.op, ast.Not):
            x = self.truth(node.operand)
            return Scalar(x.kind, self.builder.not_(x.value))
        x = self.value(node.operand)
        if not isinstance(node.op, ast.USub) or x.kind == types.boolean:
            raise self.refuse(node, "no such operation")
        if x.number is not None:
            return self.literal(-x.number)
        if isinstance(element_of(x.kind), types.Float):
            return Scalar(x.kind, self.builder.fneg(x.value))
        return self.combined(node, ast.Sub(), self.literal(0), x)

    def make_BinOp(self, node: ast.BinOp) -> Scalar:
        return self.combined(node, node.op, self.value(node.left), self.value(node.right))

    def combined(self, node: ast.AST, operation: ast.operator, a: Scalar, b: Scalar) -> Scalar:
        kind = self.common(node, a, b)
        floats, integers, truths = ARITHMETIC.get(type(operation), ("", "", ""))
        if isinstance(element_of(kind), types.Float):
            name = floats
        elif element_of(kind) == types.boolean:
            name = truths
        else:
            name, kind = integers, each(kind, types.int64)
        if not name:
            raise self.refuse(node, f"no such operation on {kind}")
        left, right = self.converted(a, kind).value, self.converted(b, kind).value
        flags = ("nsw",) if name in NO_OVERFLOW else ()
        operate = getattr(self.builder, name)
        return Scalar(kind, operate(left, right, flags=flags) if flags else operate(left, right))

    def common(self, node: ast.AST, a: Scalar, b: Scalar) -> types.Type:
        """The type in which two values meet."""
        if a.kind == b.kind:
            return a.kind
        if isinstance(a.kind, Row) or isinstance(b.kind, Row):
            row = a.kind if isinstance(a.kind, Row) else b.kind
            parts = (x._replace(kind=element_of(x.kind)) for x in (a, b))
            return row.of(self.common(node, *parts))
        if isinstance(a.kind, types.Integer) and isinstance(b.kind, types.Integer):
            return types.int64
        raise self.refuse(node, f"{a.kind} meets {b.kind}")

    def make_Compare(self, node: ast.Compare) -> Scalar:
        if len(node.ops) != 1 or type(node.ops[0]) not in RELATIONS:
            raise self.refuse(node, "no comparison of two values")
        a, b = self.value(node.left), self.value(node.comparators[0])
        kind, relation = self.common(node, a, b), RELATIONS[type(node.ops[0])]
        left, right = self.converted(a, kind).value, self.converted(b, kind).value
        builder = self.builder
        if isinstance(element_of(kind), types.Float):
            ask = builder.fcmp_unordered if relation == "!=" else builder.fcmp_ordered
        else:
            truths = element_of(kind) == types.boolean
            ask = builder.icmp_unsigned if truths else builder.icmp_signed
        return Scalar(each(kind, types.boolean), ask(relation, left, right))

    def make_BoolOp(self, node: ast.BoolOp) -> Scalar:
        operate = self.builder.and_ if isinstance(node.op, ast.And) else self.builder.or_
        value, *rest = [self.truth(x).value for x in node.values]
        for x in rest:
            value = operate(value, x)
        return Scalar(types.boolean, value)

    def make_IfExp(self, node: ast.IfExp) -> Scalar:
        test, a, b = self.truth(node.test).value, self.value(node.body), self.value(node.orelse)
        kind = self.common(node, a, b)
        left, right = self.converted(a, kind).value, self.converted(b, kind).value
        return Scalar(kind, self.builder.select(test, left, right))

    def truth(self, node: ast.expr) -> Scalar:
        """Whether a value holds."""
        x = self.value(node)
        return self.converted(x, each(x.kind, types.boolean))

    def converted(self, x: Scalar, kind: types.Type) -> Scalar:
        """A number or truth value as one of another type; pointers are what they are.

        A row becomes a row of another type, and a scalar a row of equal values.
        """
        if x.kind == kind:
            return x
        if isinstance(kind, Row):
            return self.spread(x, kind)
        if not isinstance(kind, types.Number | types.Boolean):
            raise TypingError(f"{self.tree.name}: {kind} is needed, got {x.kind}")
        made = self.context.get_value_type(kind)
        if x.number is not None and isinstance(kind, types.Float):
            return Scalar(kind, ir.Constant(made, float(x.number)))
        if type(x.number) is int and isinstance(kind, types.Integer):
            return Scalar(kind, ir.Constant(made, x.number))
        return Scalar(kind, converted(self.builder, x.value, x.kind, kind, made))

    def spread(self, x: Scalar, kind: Row) -> Scalar:
        """A row, or a scalar in every place, as a row of this type."""
        element = self.context.get_value_type(kind.element)
        if isinstance(x.kind, Row):
            given = x.kind.element
            return Scalar(kind, converted(self.builder, x.value, given, kind.element, element))
        one = self.converted(x, kind.element).value
        vector = ir.VectorType(element, kind.lanes)
        if isinstance(one, ir.Constant):
            return Scalar(kind, ir.Constant(vector, one))
        nothing = ir.Constant(vector, ir.Undefined)
        first = self.builder.insert_element(nothing, one, ir.IntType(32)(0))
        places = ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), 0)
        return Scalar(kind, self.builder.shuffle_vector(first, nothing, places))

    def make_Subscript(self, node: ast.Subscript) -> Scalar:
        """An entry of a constant table, which becomes a constant of the module."""
        assert isinstance(node.value, ast.Name)
        table = self.globals.get(node.value.id)
        if not isinstance(table, np.ndarray) or table.dtype != np.int64 or table.ndim != 2:
            raise self.refuse(node, "only constant tables of int64 are read by index")
        if not isinstance(node.slice, ast.Tuple) or len(node.slice.elts) != 2:
            raise self.refuse(node, "a table has two axes")
        row, column = (self.converted(self.value(k), types.int64) for k in node.slice.elts)
        width = self.literal(table.shape[1])
        place = self.builder.add(self.builder.mul(row.value, width.value), column.value)
        entries = self.builder.bitcast(
            self.constant(node.value.id, table), ir.IntType(64).as_pointer()
        )
        return Scalar(types.int64, self.builder.load(self.builder.gep(entries, [place])))

    def constant(self, name: str, table: np.ndarray[Any, Any]) -> ir.GlobalVariable:
        """A table as a constant of the module."""
        module = self.function.module
        found = module.globals.get(name)
        if found is None:
            content = cgutils.create_constant_array(ir.IntType(8), bytearray(table.tobytes()))
            found = cgutils.add_global_variable(module, content.type, name)
            found.linkage, found.global_constant, found.initializer = "internal", True, content
            found.align = table.itemsize
        return found

    # -- calls -------------------------------------------------------------------------------------
    def make_Call(self, node: ast.Call) -> Scalar:
        called = self.globals.get(node.func.id) if isinstance(node.func, ast.Name) else None
        given = [self.value(argument) for argument in node.args]
        if isinstance(called, (_Intrinsic, Kernel)):
            return self.intrinsic(node, called, given)
        if called in NUMPY_TYPES and len(given) == 1:
            return self.converted(given[0], each(given[0].kind, NUMPY_TYPES[called]))
        raise self.refuse(node, "not a call of an intrinsic, a kernel or a dtype")

    def intrinsic(
        self, node: ast.Call, called: _Intrinsic | Kernel, given: Sequence[Scalar]
    ) -> Scalar:
        literal = called._prefer_literal
        kinds = [
            types.literal(x.number) if literal and type(x.number) is int else x.kind for x in given
        ]
        typed = called._defn(self.context.typing_context, *kinds)
        if typed is None:
            raise self.refuse(node, f"not of {', '.join(map(str, kinds))}")
        signature, emit = typed
        wanted = map(types.unliteral, signature.args)
        arguments = [self.converted(x, k).value for x, k in zip(given, wanted, strict=True)]
        value = emit(self.context, self.builder, signature, arguments)
        return Scalar(signature.return_type, value)
