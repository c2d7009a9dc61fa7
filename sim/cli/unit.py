"""The commands `unit ...`: one component of a machine on its own, for validation and for study."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sim.cli.operator import operator
from sim.cli.printing import engineering, print_json, print_table, say_if_kernels_are_new
from sim.cli.stream import stream
from sim.errors import ConfigError

unit = typer.Typer(name="unit", help="Run one component on its own.", pretty_exceptions_enable=False)
unit.command()(stream)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class Dataflow(StrEnum):
    """Which operand stays in the array."""

    ws = "ws"
    os = "os"
    is_ = "is"


class Preload(StrEnum):
    """Whether loading the stationary operand overlaps the stream."""

    fold_serial = "fold_serial"
    double_buffered = "double_buffered"


unit.command()(operator)


@unit.callback(invoke_without_command=True)
def _unit(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@unit.command()
def dram(
    memory: Annotated[str, typer.Argument(help="A memory that ships (opcycle list memories) or a YAML file.")],
    trace: Annotated[Path, typer.Argument(help="One request a line: LD or ST, byte address, optional arrival cycle.")],
    channels: Annotated[int, typer.Option(help="Channels that the addresses are spread over.", min=1, max=4096)] = 1,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a value of the memory: policy=frfcfs.")
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option(help="Most requests under way at once; default: no limit.", min=1)
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Count timing violations with the independent checker.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", "--plot", metavar="DIR", help="Folder for tables by channel, bank and time, and pictures."
        ),
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="Length of a window of the tables, such as '1 us'; default at most 200 of them.")
    ] = None,
    json: Json = False,
) -> None:
    """Serve a file of reads and writes on a DRAM, command by command."""
    from sim.cli.settings import settings
    from sim.dram_unit import run

    if window is not None and output is None:
        raise ConfigError("--window is the length of a window of the tables that -o DIR writes, but there is no -o")
    result = run(
        memory,
        trace,
        channels=channels,
        overrides=settings(set_ or [], ("",))[""],
        in_flight=in_flight or 0,
        check=check,
        before=lambda: say_if_kernels_are_new("dram_trace.replay*"),
        output=output,
        window_ps=_window_ps(window),
    )
    if json:
        print_json(result)
        return
    _print_flat(f"{memory}, {channels} channel{'s' if channels > 1 else ''}: {trace}", result)
    if output is not None:
        names = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
        print(f"Results in {output}/: {', '.join(n for n in names if not n.endswith('.png'))}")
        print(f"Pictures: {', '.join(str(output / n) for n in names if n.endswith('.png'))}")


def _window_ps(text: str | None) -> int | None:
    """A time from the command line in picoseconds. Raises ConfigError."""
    if text is None:
        return None
    from sim.units import TIME_UNITS, reader

    try:
        length = reader("a time", TIME_UNITS)(text)
    except ValueError as error:
        raise ConfigError(f"--window {error}") from None
    if not length:
        raise ConfigError(f"--window {text!r} is zero, but a window must be longer")
    return length


@unit.command()
def gemm(
    m: Annotated[int, typer.Argument(metavar="M", help="Rows of the result.", min=1)],
    n: Annotated[int, typer.Argument(metavar="N", help="Columns of the result.", min=1)],
    k: Annotated[int, typer.Argument(metavar="K", help="Length of each dot product.", min=1)],
    rows: Annotated[int, typer.Option(help="Rows of the array.", min=1)],
    cols: Annotated[int, typer.Option(help="Columns of the array.", min=1)],
    dataflow: Annotated[Dataflow, typer.Option(help="Weight-, output- or input-stationary.")],
    preload: Annotated[
        Preload, typer.Option(help="Load of the stationary operand: after each fold, or under the stream of the last.")
    ] = Preload.fold_serial,
    json: Json = False,
) -> None:
    """Multiply M x K by K x N on one systolic array, operands always present."""
    from sim.cost import unit_gemm

    result = unit_gemm(rows, cols, dataflow.value, m, n, k, preload.value)
    if json:
        print_json(result)
        return
    _print_flat(f"{m} x {k} times {k} x {n} on a {rows} x {cols} array, {dataflow.value}, {preload.value}", result)


class PimLevel(StrEnum):
    """Where the units of AttAcc stand."""

    bank = "bank"
    bank_group = "bank_group"
    buffer = "buffer"


class PimKernel(StrEnum):
    """What is computed in memory."""

    gemv = "gemv"
    add = "add"
    mul = "mul"
    relu = "relu"
    attention = "attention"


@unit.command()
def pim(
    hardware: Annotated[str, typer.Argument(metavar="HWCONFIG", help="A machine that computes in memory, or a YAML.")],
    rows: Annotated[int, typer.Option(help="Rows of the matrix; tokens of attention.", min=1)],
    cols: Annotated[int, typer.Option(help="Columns of the matrix; dimension of a head.", min=1)],
    batch: Annotated[int, typer.Option(help="Vectors, one after another.", min=1)] = 1,
    kernel: Annotated[PimKernel, typer.Option(help="What to compute; add, mul and relu on rows x cols.")] = (
        PimKernel.gemv
    ),
    heads: Annotated[int, typer.Option(help="Heads of attention, dealt out over the channels.", min=1)] = 1,
    level: Annotated[PimLevel | None, typer.Option(help="AttAcc: where its units are; default: in banks.")] = None,
    start: Annotated[int, typer.Option(help="Clock at which it begins, for the refreshes.", min=0)] = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a value: hw.memory.settings.timings.tMAC=4.")
    ] = None,
    check: Annotated[bool, typer.Option(help="Count timing violations with the independent checker.")] = True,
    plain: Annotated[bool, typer.Option("--plain", help="Also the time of ordinary reads and writes instead.")] = False,
    json: Json = False,
) -> None:
    """Compute one GEMV, or another operator, in the memory of a machine, alone."""
    from sim.cli.settings import settings
    from sim.pim.shapes import Kernel
    from sim.pim.unit import run

    overrides: dict[str, str] = settings(set_ or [], ("hw",))["hw"]
    if heads > 1 and kernel is not PimKernel.attention:
        raise ConfigError(f"--heads {heads} goes with --kernel attention, not with {kernel.value}, which has no heads")
    if level is not None:
        _check_attacc(hardware, overrides)
        name = {"bank": "", "bank_group": "-bankgroup", "buffer": "-buffer"}[level.value]
        overrides = {"memory.standard": f"hbm3-attacc{name}", **overrides}
    result = run(
        hardware,
        Kernel(kernel.value),
        rows,
        cols,
        batch=batch,
        heads=heads,
        start=start,
        overrides=overrides,
        check=check,
        plain=plain,
        before=lambda: say_if_kernels_are_new("dram.step*"),
    )
    if json:
        print_json(result)
        return
    _print_flat(f"{hardware}: {kernel.value} of {rows} x {cols} in memory", result)


def _check_attacc(hardware: str, overrides: dict[str, str]) -> None:
    from sim.kinds import load_hardware

    standard = load_hardware(hardware, overrides).memory.standard
    if not standard.startswith("hbm3-attacc"):
        raise ConfigError(
            f"--level says where the units of AttAcc are, but the memory of {hardware} is {standard}; leave --level "
            "out, or take a machine with hbm3-attacc, such as attacc-like"
        )


@unit.command()
def sparse(
    hardware: Annotated[str, typer.Argument(help="A machine with a sparse engine, or a YAML file.")],
    m: Annotated[int, typer.Argument(metavar="M", help="Rows of activations and result.", min=1, max=2**24)],
    n: Annotated[int, typer.Argument(metavar="N", help="Columns of weights and result.", min=1, max=2**24)],
    k: Annotated[int, typer.Argument(metavar="K", help="Length of each dot product.", min=1, max=2**24)],
    weights: Annotated[
        str, typer.Option(help="dense, 2:4, random:0.1 (the kept part), block:16x16:0.25, balanced:16, or FILE.npz.")
    ] = "dense",
    activations: Annotated[
        str, typer.Option(help="dense, random:0.3 (the kept part), relu:0.5, topk:0.1, 2:4, or FILE.npz.")
    ] = "dense",
    seed: Annotated[int, typer.Option(help="Of the masks that are drawn.", min=0)] = 0,
    precision: Annotated[
        str | None, typer.Option(help="Formats of both operands by name: W8A8KV8, W4A8, W2A8KV4, ...")
    ] = None,
    weight_format: Annotated[str | None, typer.Option(help="Number format of the weights.")] = None,
    activation_format: Annotated[str | None, typer.Option(help="Number format of the activations.")] = None,
    epilogue: Annotated[
        str | None, typer.Option(help="Vector function on every result, beside the array: gelu, silu, ...")
    ] = None,
    produced_as: Annotated[
        str | None, typer.Option(help="Storage format in which the activations arrive, if a converter must turn them.")
    ] = None,
    operands: Annotated[
        str, typer.Option(help="scratchpad: all on chip; dram: every operand read once, the result written.")
    ] = "scratchpad",
    training: Annotated[
        bool, typer.Option("--training", help="One training step: forward, both gradients, update and masks.")
    ] = False,
    curve: Annotated[
        bool, typer.Option("--curve", help="Speedup against sparsity, with what eats the difference to the ideal.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder for the curve's points and picture.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a value of the machine: hw.sparse.skip=false.")
    ] = None,
    json: Json = False,
) -> None:
    """Multiply M x K activations by K x N weights that have zeros, on a sparse engine."""
    from sim.cli.settings import settings
    from sim.sparse.unit import formats_of, run

    overrides = settings(set_ or [], ("hw",))["hw"]
    if epilogue is not None:
        _check_epilogue(epilogue)
    formats = formats_of(precision, activation_format, weight_format)
    if output is not None and not curve:
        raise ConfigError("-o names a folder for --curve, which is not asked for")
    if curve and (training or produced_as is not None):
        raise ConfigError(f"--curve and {'--training' if training else '--produced-as'} don't go together")
    if training and (activations != "dense" or epilogue is not None or produced_as is not None):
        raise ConfigError("--training takes --weights alone: no --activations, --epilogue or --produced-as")
    if curve:
        result = _curve(hardware, (m, n, k), weights, activations, formats, epilogue, seed, operands, overrides, output)
    else:
        result = run(
            hardware, m, n, k, weights=weights, activations=activations, seed=seed, formats=formats,
            epilogue=epilogue, produced_as=produced_as, operands=operands, overrides=overrides, training=training,
        )  # fmt: skip
    if json:
        print_json(result)
    elif curve:
        rows = [[str(p["weights"]), str(p["activations"]), f"{p['sparsity']:.1%}", f"{p['cycles']:,}",
                 f"{p['speedup']:.2f}", f"{p['ideal_speedup']:.2f}", p["bound"]] for p in result["points"]]  # fmt: skip
        heads = ["weights", "activations", "sparsity", "cycles", "speedup", "ideal", "bound"]
        print_table(f"{m} x {k} times {k} x {n} on {hardware}", heads, rows, right=heads[2:6])
        if output is not None:
            print(f"Results in {output}/: sparse.json, points.csv; picture: {output / 'speedup.png'}")
    else:
        _print_flat(f"{m} x {k} times {k} x {n} on {hardware}", result)


def _check_epilogue(name: str) -> None:
    from sim.cost import FUNCTIONS
    from sim.errors import not_among

    if name not in FUNCTIONS:
        raise ConfigError(f"--epilogue {not_among('function', name, FUNCTIONS)}")


def _curve(
    hardware: str, size: tuple[int, int, int], weights: str, activations: str, formats: tuple[str | None, str | None],
    epilogue: str | None, seed: int, operands: str, overrides: dict[str, str], output: Path | None,
) -> dict[str, Any]:  # fmt: skip
    from sim.errors import not_among
    from sim.sparse.curve import curve, write_curve
    from sim.sparse.pattern import parse
    from sim.sparse.unit import OPERANDS, sparse_machine

    if operands not in OPERANDS:
        raise ConfigError(f"--operands {not_among('place', operands, OPERANDS)}")
    machine = sparse_machine(hardware, overrides)
    data = curve(
        machine, *size, parse(weights, "weights"), parse(activations, "activations"), weight_format=formats[1],
        activation_format=formats[0], epilogue=epilogue, seed=seed, with_dram=operands == "dram",
    )  # fmt: skip
    if output is not None:
        write_curve(output, data)
    return data


def _print_flat(title: str, result: dict[str, object]) -> None:
    rows: list[tuple[str, str]] = []
    for key, value in result.items():
        items = value.items() if isinstance(value, dict) else [("", value)]
        rows += [(f"{key} {name}".strip(), _shown(f"{key} {name}", number)) for name, number in items]
    print_table(title, ["quantity", "value"], rows, right=["value"])


def _shown(key: str, value: object) -> str:
    if "bytes_per_s" in key and isinstance(value, (int, float)):
        return engineering(float(value), "B/s")
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
