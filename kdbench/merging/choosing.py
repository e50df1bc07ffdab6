"""Which runs a merge copies: every result once, none that contradicts another, and everything left out is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdbench.errors import ConfigError
from kdbench.merging.reading import Content, Found
from kdbench.merging.results import differences
from kdbench.store import WEIGHTS, RunStore, changes


@dataclass
class Choice:
    """What a merge will do.

    Args:
        copy: Runs to copy, by id.
        present: Runs that are in the target and stay as they are.
        repeated: Folders whose result is the same as one that is taken, or there.
        unfinished: Folders of runs without a result, left out.
        failed: Folders of failures that give way to a result, or to another failure.
        damaged: Messages about runs that cannot be used.
        conflicts: Messages about runs of which only one can be right; with any of them nothing is copied.
    """

    copy: dict[str, Found] = field(default_factory=dict)
    present: list[Found] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    failed: list[Path] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)


def choose(sources: Sequence[Content], target: Content, *, with_unfinished: bool) -> Choice:
    """Return what a merge of stores will do.

    Args:
        sources: The stores, in the order in which their runs are preferred.
        target: What is there already; it stays, unless it is unfinished or failed and a source has the result.
        with_unfinished: Whether unfinished runs are copied, too.
    """
    choice = Choice()
    for content in (*sources, target):
        choice.damaged += content.damaged.values()
    there = {run.spec.run_id: run for run in target.runs}
    offered: dict[str, list[Found]] = {}
    for run in (run for content in sources for run in content.runs):
        offered.setdefault(run.spec.run_id, []).append(run)
    for run_id, runs in sorted(offered.items()):
        _choose_one(choice, runs, there.get(run_id), with_unfinished=with_unfinished)
    for run_id, run in choice.copy.items():
        if problem := _obstacle(run_id, run, target, there.get(run_id)):
            choice.conflicts.append(problem)
    return choice


def _choose_one(choice: Choice, offered: Sequence[Found], there: Found | None, *, with_unfinished: bool) -> None:
    """Choose among the folders of one run; whichever is there already comes first."""
    runs = [there, *offered] if there else list(offered)
    wanted = [run for run in runs if run.record or run is there or with_unfinished]
    if conflict := next((text for run in wanted[1:] if (text := _two_configurations(wanted[0], run))), None):
        choice.conflicts.append(conflict)
        return
    done = [run for run in wanted if run.done]
    failed = [run for run in wanted if run.failed]
    if conflict := next((text for run in done[1:] if (text := _two_results(done[0], run))), None):
        choice.conflicts.append(conflict)
        return
    if not wanted:
        choice.unfinished += [run.folder.path for run in runs]
        return
    best = _preferred(done, failed, wanted, there)
    choice.repeated += [run.folder.path for run in done if run is not best]
    choice.failed += [run.folder.path for run in failed if run is not best]
    if not best.record:
        choice.unfinished += [run.folder.path for run in offered if run is not best and not run.record]
    if best is there:
        choice.present.append(best)
    else:
        choice.copy[best.spec.run_id] = best


def _preferred(done: Sequence[Found], failed: Sequence[Found], wanted: Sequence[Found], there: Found | None) -> Found:
    """Return the best of one run's folders: a result, and of results the one there, else the first with its weights.

    Without a result it is what is there if that may still go on, else a failure, else the first of the unfinished.
    """
    with_weights = [run for run in done if (run.folder.path / WEIGHTS).exists()]
    results = [run for run in done if run is there] or with_weights or done
    begun = [run for run in wanted if run is there and run.folder.checkpoints.exists()]
    return next(iter((*results, *begun, *failed, *wanted)))


def _two_configurations(one: Found, other: Found) -> str | None:
    if one.spec.config_sha256 == other.spec.config_sha256:
        return None
    return (
        f"{other.folder.path}: holds another configuration of run {one.spec.run_id} than "
        f"{one.folder.path} ({changes(one.spec, other.spec, now='here')}); leave one of the "
        "stores out, or make its run again as a --variant"
    )


def _two_results(one: Found, other: Found) -> str | None:
    if not (found := differences(one, other)):
        return None
    return (
        f"{other.folder.path}: has another result of run {one.spec.run_id} than {one.folder.path} (different: "
        f"{'; '.join(found)}); a seed counts once: find out which one to keep, and remove the other"
    )


def _obstacle(run_id: str, run: Found, target: Content, there: Found | None) -> str | None:
    """Return why a run cannot be put into its place; None = it can."""
    if run_id in target.damaged:
        return (
            f"{target.damaged[run_id]}; the target's run is damaged: remove it, then {run.folder.path} takes its place"
        )
    try:
        place = RunStore(target.root).folder(run_id)
    except ConfigError as error:
        return f"{error}; it cannot be copied to {target.root}: see that no link there leads elsewhere"
    if there is not None and there.folder.held(only_look=True):
        return f"{place.path}: another process is training this run; wait for it or stop it, then merge again"
    if there is None and place.path.exists():
        return f"{place.path}: exists and is no run of kdbench; remove it, or choose another --out"
    if not run.record and run.folder.held(only_look=True):
        return f"{run.folder.path}: is being trained; wait for it or stop it, or merge without --with-unfinished"
    return None
