"""Entry point of `hcp-agent` (`python -m edge_agent`): the light command line, or a program."""

import sys


def main(argv: list[str] | None = None) -> int:
    """Run one command; only the programs import what is heavy."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["bridge"]:
        from firmware_bridges.tool import main as bridge

        return bridge(words[1:], prog="hcp-agent bridge")
    if words[:1] == ["gpu-control"]:
        from firmware_bridges.nvml.control.program import main as gpu_control

        return gpu_control(words[1:], prog="hcp-agent gpu-control")
    if words[:1] == ["reference"]:
        from edge_agent.reference.command import main as reference

        return reference(words[1:], prog="hcp-agent reference")
    from edge_agent.cli.parser import build_parser

    args = build_parser().parse_args(words)
    if args.command == "version":
        return _version(as_json=args.json)
    if args.command in {"run", "node", "host", "config", "backtest"}:
        from edge_agent.programs import run_program

        return run_program(args)
    history = {"replay", "regret", "report"}
    if args.command in history or (args.command == "why" and args.at):
        from edge_agent.cli import render
        from edge_agent.history.command import run_history

        return run_history(args, render.why)
    from edge_agent.cli.commands import run

    return run(args)


def _version(*, as_json: bool) -> int:
    from edge_agent.version import VERSION

    print(f'{{"v": 1, "version": "{VERSION}"}}' if as_json else f"hcp-agent {VERSION}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
