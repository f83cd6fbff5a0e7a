"""The command `headway`: its verbs, and how errors become a message and an exit code."""

from __future__ import annotations

import click

import headway
from headway.cli.bench import bench
from headway.cli.calibrate import calibrate
from headway.cli.capacity import capacity
from headway.cli.compare import compare
from headway.cli.emulate import emulate
from headway.cli.export import export
from headway.cli.listing import list_
from headway.cli.picker import picker
from headway.cli.plan import plan
from headway.cli.profile import profile
from headway.cli.replay import replay
from headway.cli.report import report
from headway.cli.serve import serve
from headway.cli.simulate import simulate
from headway.cli.validate import validate
from headway.cli.whatif import whatif
from headway.errors import HeadwayError, nearest

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class Verbs(click.Group):
    """Turns what the rooms raise into one message on stderr and an exit code; names the nearest verb."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order they were added, the main one first."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or say which ones there are."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            verbs = self.list_commands(ctx)
            near = nearest(args[0], verbs)
            hint = f"did you mean {' or '.join(near)}?" if near else f"verbs are {', '.join(verbs)}"
            raise click.UsageError(f"no verb {args[0]!r}: {hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except HeadwayError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(headway.__version__, prog_name="headway", message="%(prog)s %(version)s")
def main() -> None:
    """Which deployment serves a language-model workload within its SLOs, at the least cost and energy.

    \b
    headway plan --model llama-3.1-70b --gpu h100-sxm --gpus 16 --workload chat --rate 20 \\
        --ttft 500ms --tpot 50ms
    headway simulate --model llama-3.1-8b --gpu h100-sxm --replicas 2 --rate 20

    Answers go to stdout, everything else to stderr. Exit codes: 0 done, 1 no feasible answer, 2 bad input,
    130 interrupted.
    """


SERVING = (emulate, serve, picker, replay, whatif)
for verb in (plan, simulate, capacity, bench, compare, validate, calibrate, profile, *SERVING, report, export, list_):
    main.add_command(verb)
