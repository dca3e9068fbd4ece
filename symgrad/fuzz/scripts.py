"""A failure as a script that a user can run: it needs symgrad and NumPy, and fails alike."""

from __future__ import annotations

from symgrad.fuzz.judges import STEPS, Failure, frozen_values
from symgrad.fuzz.programs import Built, Program, needs_sympy, script, values_text, widened


def runnable(program: Program, failure: Failure) -> str:
    """The text of a script that raises for the same reason."""
    head = [f"# symgrad fuzz --seed {program.seed} --programs 1: {failure.kind}"]
    head += [f"# {line}" for line in failure.message.splitlines()]
    simulated = failure.judge == "simulated"
    if simulated:
        head += ["import os", "", 'os.environ["NUMBA_ENABLE_CUDASIM"] = "1"']
    head.append("import numpy as np")
    if needs_sympy(program):
        head.append("import sympy")
    head += ["", "import symgrad as sg", ""]
    atol = f"{failure.atol:.4g}"
    if failure.judge == "differentiated":
        body = _differentiated(program, failure)
    elif failure.judge == "evaluated":
        body = [*script(program), *values_text(program.values), *_evaluated(program, failure)]
    else:
        body = [*script(program), *values_text(program.every_value),
                *_compiled(program, "cuda" if simulated else "cpu", atol)]  # fmt: skip
    return "\n".join([*head, *body]) + "\n"


def _options(program: Program) -> str:
    return f"seed={program.seed}, training={program.training}"


def _names(program: Program) -> str:
    return ", ".join([*program.outputs, *program.tellers])


def _close(atol: str) -> list[str]:
    return [
        "for got, wanted in zip(found, expected, strict=True):",
        f"    np.testing.assert_allclose(got, wanted, rtol=0, atol={atol})",
        "    assert np.asarray(got).dtype == np.asarray(wanted).dtype",
    ]


def _evaluated(program: Program, failure: Failure) -> list[str]:
    options, atol = _options(program), f"{failure.atol:.4g}"
    text = [f"outputs = [{_names(program)}]"]
    if failure.kind.startswith("naive"):
        naive = ", ".join(a for a, _ in program.equal)
        verbs = ", ".join(b for _, b in program.equal)
        text = [f"outputs = [{naive}, {verbs}, {', '.join(program.tellers)}]"]
        text.append(f"values = sg.evaluate(sg.stabilize(outputs), values, {options})")
        n = len(program.equal)
        return [*text, f"found, expected = values[:{n}], values[{n}:{2 * n}]", *_close(atol)]
    text += [f"expected = sg.evaluate(sg.stabilize(outputs), values, {options})"]
    if failure.kind.startswith("simplified"):
        text.append(
            f"found = sg.evaluate(sg.simplify(sg.stabilize(outputs)), values, {options})"
        )
    else:
        text.append(f"found = sg.evaluate(outputs, values, {options})")
    if "finite" in failure.kind:
        return [*text, "assert all(np.isfinite(value).all() for value in expected)"]
    return [*text, *_close(atol)]


def _loss(built: Built) -> str:
    names = built.program.outputs
    floats = [n for n in names if built.node(n).dtype.kind == "f"]
    return " + ".join(f"sg.sum(sg.sin({n}))" for n in floats) or "sg.constant(0.0)"


def _compiled(program: Program, target: str, atol: str) -> list[str]:
    built = Built(program)
    leaves = ", ".join(x.name for x in built.float_leaves)
    text = [f"outputs = [{_names(program)}]"]
    if leaves and not _loss(built).startswith("sg.constant"):
        text += [f"leaves = [{leaves}]", f"loss = {_loss(built)}",
                 "outputs += sg.grad(loss, leaves)"]  # fmt: skip
        if program.seed % 2:
            text.append("outputs += sg.hvp(loss, leaves, [sg.ones_like(x) * 0.5 for x in leaves])")
    options = _options(program)
    pairs = ", ".join(f"{a}: {b}" for a, b in program.updates)
    text += [
        f"updates = {{{pairs}}}",
        f'f = sg.compile(outputs, updates=updates, target="{target}", {options})',
        "for leaf in updates:",
        "    f.state[leaf.name] = values[leaf.name]",
        "inputs = [x for x in sg.inputs([*outputs, *updates.values()]) if x not in updates]",
        "stable = sg.stabilize([*outputs, *updates.values()])",
        "for step in range(2 if updates else 1):",
        f"    expected = sg.evaluate(stable, values, {options}, step=step)",
        "    found = [*f(**{x.name: values[x.name] for x in inputs}),",
        "             *(f.state[x.name] for x in updates)]",
        *("    " + line for line in _close(atol)),
        "    values.update({leaf.name: f.state[leaf.name] for leaf in updates})",
    ]
    return text


def _differentiated(program: Program, failure: Failure) -> list[str]:
    program = widened(program, frozen_values(program))
    built = Built(program)
    leaves = ", ".join(x.name for x in built.float_leaves)
    tellers = ", ".join(program.tellers)
    options = _options(program)
    second = (
        "second = list(sg.hvp(loss, leaves, along))"
        if program.seed % 2
        else "second = list(sg.grad(sum(sg.sum(g * t) for g, t in zip(slopes, along)), leaves))"
    )
    return [
        *script(program),
        *values_text(program.every_value),
        f"leaves = [{leaves}]",
        f"loss = {_loss(built)}",
        "slopes = list(sg.grad(loss, leaves))",
        'along = [sg.input(f"along_{x.name}", x.shape, x.dtype) for x in leaves]',
        second,
        "pushed = sg.jvp(loss, leaves, along)[1]",
        f"rng = np.random.default_rng({program.seed})",
        "v = [rng.standard_normal(values[x.name].shape) for x in leaves]",
        "w = [rng.standard_normal(a.shape) for a in v]",
        "dot = lambda a, b: float(sum((x * y).sum() for x, y in zip(a, b)))",
        f"stable = list(sg.stabilize([loss, pushed, *slopes, *second])) + [{tellers}]",
        "given = {**values, **{t.name: a for t, a in zip(along, v)}}",
        f"found = sg.evaluate(stable, given, {options})",
        "n = len(leaves)",
        "first = dot(found[2 : 2 + n], v)",
        "claimed = np.array([first, dot(found[2 + n : 2 + 2 * n], w)])",
        *_judgement(failure, f"[stable[0], *stable[2 : 2 + n], {tellers}]", options),
    ]


def _judgement(failure: Failure, loss_and_slopes: str, options: str) -> list[str]:
    """The lines that raise."""
    if "finite" in failure.kind:
        return ["assert all(np.isfinite(value).all() for value in found), found"]
    atol = f"{failure.atol:.4g}"
    if failure.kind == "adjoint":
        return [f"np.testing.assert_allclose(first, found[1], rtol=0, atol={atol})"]
    k = int(failure.kind == "second order")
    return [
        "def at(t):",
        "    moved = {**values, **{x.name: values[x.name] + t * a for x, a in zip(leaves, v)}}",
        f"    found = sg.evaluate({loss_and_slopes}, moved, {options})",
        "    return np.array([float(found[0]), dot(found[1 : 1 + n], w)])",
        f"steps = {STEPS}",
        "near, far = ([(at(k * h) - at(-k * h)) / (2 * k * h) for h in steps] for k in (1, 2))",
        "differences = [(4 * a - b) / 3 for a, b in zip(near, far)]",
        f"error = min(abs(d[{k}] - claimed[{k}]) for d in differences)",
        'print("claimed", claimed, "measured", *differences)',
        f"np.testing.assert_allclose(error, 0, rtol=0, atol={atol})",
    ]
