"""``kdbench ablate``."""

from __future__ import annotations

from typing import Any

import click

from kdbench.cli.arguments import apply, carrying_options, runs_options
from kdbench.cli.main import State
from kdbench.cli.run import rehearse, split, train


@click.command("ablate")
@click.argument("method")
@apply(
    click.option("--pair", required=True, metavar="P", help="The pair."),
    click.option("--ladder", metavar="NAME", help="Which ladder  [default: the method's own choice]."),
    click.option("--anchor", metavar="NAME|FILE", help="Protocol  [default: the ladder's]."),
    runs_options,
    carrying_options,
)
@click.pass_obj
def ablate_command(
    state: State, /, method: str, ladder: str | None, dry_run: bool, measure: bool, **options: Any
) -> None:
    """Run the ladder of METHOD: configurations that each change one declared factor, with the same seeds.

    What every step changes is computed from the configurations themselves and printed; a step that changes a key
    outside its factor, or nothing, is refused. Finished runs are not run again.
    """
    from kdbench.ablation.differences import described
    from kdbench.ablation.expanding import Ablation, expand, ladder_of
    from kdbench.cli.planning import Asked, plan_for

    how, cells = split(options, state)
    registry = state.registry()
    chosen = ladder_of(method, ladder, registry)
    asked = Asked(**{**cells, "method": method, "anchor": cells["anchor"] or chosen.anchor, "elsewhere": how.elsewhere})
    made: list[Ablation] = []

    def make(request: Any, known: Any) -> Any:
        made.append(expand(chosen, request, known))
        return made[0].plan

    plan = plan_for(asked, registry, make)
    for line in described(chosen, made[0].found):
        click.echo(line)
    if dry_run:
        rehearse(plan, asked, how, state, measure=measure)
        return
    failed = train(plan, asked, how, state, measure=measure)
    _report(made[0], asked)
    if failed:
        raise SystemExit(4)


def _report(ablation: Any, asked: Any) -> None:
    from kdbench.ablation.results import rungs
    from kdbench.ablation.writing import FOLDER, to_markdown, write
    from kdbench.store import RunStore

    store = RunStore(asked.out)
    steps = rungs(ablation, store)
    paths = write(ablation, steps, store.root)
    store.at(FOLDER).push()
    click.echo(to_markdown(ablation, steps))
    for path in paths:
        click.echo(f"wrote {path}")
